"""Writes landmarks.json of a folder of pictures: `python -m training.data.making.mediapipe_landmarks PICTURES OUT`.

Runs in any environment that has mediapipe 0.10.14, whose wheel holds the models; nothing is downloaded, and nothing
else of this project is imported. Faces that the short-range detector of the mesh misses, because they are small in
their picture, are looked for by the full-range one, and the mesh is fitted to a part of the picture around them.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_LONGEST = 1600  # pixels; larger pictures are made smaller for the detectors
_MOST_FACES = 5
_AROUND = 1.0  # widths of a found face that are added on each side
_SAME = 0.5  # widths of a face within which two centres are one face


def main(pictures: Path, out: Path) -> None:
    """Finds the faces of all pictures below `pictures` and writes `out`."""
    import mediapipe as mp

    found: dict[str, Any] = {}
    with (
        mp.solutions.face_mesh.FaceMesh(
            static_image_mode=True, max_num_faces=_MOST_FACES, refine_landmarks=True
        ) as mesh,
        mp.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5) as detector,
    ):
        for path in sorted(p for p in pictures.rglob("*") if p.suffix.lower() in _ENDINGS):
            name = path.relative_to(pictures)
            if name.parts[0] == "masks" or any(part.startswith(".") for part in name.parts):
                continue
            try:
                with Image.open(path) as file:
                    picture = ImageOps.exif_transpose(file).convert("RGB")
            except (OSError, SyntaxError, ValueError) as error:
                print(f"{path}: cannot be read: {error}", file=sys.stderr)
                continue
            picture.thumbnail((_LONGEST, _LONGEST))
            faces = _faces(np.asarray(picture), mesh, detector)
            found[name.as_posix()] = {"size": list(picture.size), "faces": [f.round(2).tolist() for f in faces]}
    out.write_text(json.dumps({"order": "mediapipe478", "exif": "applied", "pictures": found}))


def _faces(pixels: np.ndarray, mesh: Any, detector: Any) -> list[np.ndarray]:
    """Returns the faces of a picture [H, W, 3], each [478, 2] in pixels."""
    faces = _mesh(pixels, mesh, 0, 0)
    height, width = pixels.shape[:2]
    for detection in detector.process(pixels).detections or []:
        box = detection.location_data.relative_bounding_box
        x, y, w, h = box.xmin * width, box.ymin * height, box.width * width, box.height * height
        centre = np.array([x + w / 2, y + h / 2])
        if any(np.linalg.norm(face.mean(0) - centre) < _SAME * max(w, np.ptp(face[:, 0])) for face in faces):
            continue
        left, top = max(0, int(x - _AROUND * w)), max(0, int(y - _AROUND * h))
        part = pixels[top : int(y + (1 + _AROUND) * h), left : int(x + (1 + _AROUND) * w)]
        if min(part.shape[:2]) > 0:
            inside = _mesh(np.ascontiguousarray(part), mesh, left, top)
            faces += [f for f in inside if np.linalg.norm(f.mean(0) - centre) < _SAME * max(w, np.ptp(f[:, 0]))][:1]
    return faces


def _mesh(pixels: np.ndarray, mesh: Any, left: int, top: int) -> list[np.ndarray]:
    height, width = pixels.shape[:2]
    found = mesh.process(pixels).multi_face_landmarks or []
    return [np.array([[left + p.x * width, top + p.y * height] for p in face.landmark]) for face in found]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m training.data.making.mediapipe_landmarks PICTURES OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
