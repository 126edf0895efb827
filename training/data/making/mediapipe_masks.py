"""Writes masks of a folder of crops: `python -m training.data.making.mediapipe_masks CROPS OUT`.

Runs in any environment that has mediapipe 0.10.14, whose wheel holds the model of persons (256 px, so that hair is
coarse); nothing is downloaded, and nothing else of this project is imported.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(crops: Path, out: Path) -> None:
    """Writes OUT/<name>.png, 255 where a person is, for each PNG of `crops`."""
    import mediapipe as mp

    with mp.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0) as model:
        for path in sorted(crops.glob("*.png")):
            with Image.open(path) as file:
                shares = model.process(np.asarray(file.convert("RGB"))).segmentation_mask
            Image.fromarray((np.clip(shares, 0, 1) * 255).round().astype(np.uint8)).save(out / path.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m training.data.making.mediapipe_masks CROPS OUT")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
