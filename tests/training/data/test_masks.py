"""What masks hold is judged: in validate, at the start of training, by the importers and by convert."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dataset_tool import main
from tests.training.data import dots
from training.data import mask_check
from training.data.image_store import DatasetError
from training.data.making.convert import convert_set
from training.data.making.importers import import_colmap, import_transforms
from training.data.validation import inspect_set, validate_set
from training.dataset import ImageDataset
from training.runs.launch import validate_data

NUM, SIZE = 6, 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


def square(on: int = 255, off: int = 0) -> np.ndarray:
    mask = np.full((SIZE, SIZE), off, np.uint8)
    mask[16:48, 16:48] = on
    return mask


def head() -> np.ndarray:
    """A head with shoulders that fill the lower border."""
    mask = square()
    mask[48:] = 255
    return mask


SOFT = (square().astype(float) * np.linspace(0.2, 1, SIZE)[:, None]).astype(np.uint8)
# Name -> the masks, and a word of the problem or None.
MASKS = {
    "right": ([square()] * NUM, None),
    "soft": ([SOFT] * NUM, None),
    "full": ([np.full((SIZE, SIZE), 255, np.uint8)] * NUM, None),
    "head": ([head()] * NUM, None),
    "0 and 1": ([square(1)] * NUM, "reach 1 of 255"),
    "0 and 2": ([square(2)] * NUM, "reach 2 of 255"),
    "percent": ([(SOFT * (100 / 255)).astype(np.uint8)] * NUM, "reach 7"),
    "empty": ([square(0)] * NUM, "all 6 masks are empty"),
    "inverted": ([255 - square()] * NUM, "look inverted"),
    "inverted head": ([255 - head()] * NUM, "look inverted"),
    "inverted 0 and 1": ([1 - square(1)] * NUM, "look inverted|reach 1"),
    "one of 0 and 1": ([square(1), *[square()] * (NUM - 1)], "reaches 1 of 255, others 255"),
    "one inverted": ([*[square()] * (NUM - 1), 255 - square()], "looks inverted, unlike others"),
}


def write(root, masks, how: str):
    """Writes a set with masks as files ("mask") or as alpha channels ("alpha")."""
    if how == "alpha":
        return dots.write_set(
            root, dots.arc(NUM), saver=lambda image, path, i: Image.merge(
                "RGBA", (*image.split(), Image.fromarray(masks[i]))).save(path)
        )  # fmt: skip
    images = dots.write_set(root, dots.arc(NUM))
    (root / "mask").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(root / "mask" / f"{i:05d}.png")
    return images


def tool(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("how", ["mask", "alpha"])
@pytest.mark.parametrize("case", MASKS)
def test_every_reader_judges_alike(tmp_path, how, case):
    masks, word = MASKS[case]
    images = write(tmp_path / "set", masks, how)
    code, output = tool("validate", images)
    assert (code == 0) == (word is None), output
    converted, told = tool("convert", images, f"--dest={tmp_path}/out")
    dataset = ImageDataset(images)
    if word is None:
        assert converted == 0 and validate_set(tmp_path / "out" / str(SIZE)) == []
        validate_data(str(images), dataset)
        return
    assert any(w in output for w in word.split("|")) and any(w in told for w in word.split("|")), (output, told)
    assert converted == 1 and not (tmp_path / "out").exists()
    with pytest.raises(DatasetError, match=word):
        validate_data(str(images), dataset)


@pytest.mark.parametrize("how", ["mask", "alpha"])
@pytest.mark.parametrize("case", [name for name, (_, word) in MASKS.items() if word])
def test_fix_mends_what_is_clear_and_leaves_the_rest_alone(tmp_path, how, case):
    images = write(tmp_path / "set", MASKS[case][0], how)
    code, output = tool("validate", images, "--fix", f"--dest={tmp_path}/fixed")
    if case in ("empty", "percent"):
        assert code == 1 and "not clear" in output and not (tmp_path / "fixed").exists()
        return
    assert code == 0 and f"{NUM} images of 64 px, 0 left out" in output, output
    for i in range(NUM):
        mask = np.asarray(Image.open(tmp_path / "fixed" / "mask" / f"{i:05d}.png"))
        assert mask[32, 32] == 255 and mask[2, 2] == 0
    assert validate_set(tmp_path / "fixed" / "64") == []


def palette(colour: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(square(1)).convert("P")
    image.putpalette([0, 0, 0, *colour])
    return image


SKIN = Image.new("RGB", (SIZE, SIZE), (190, 150, 130))
# Name -> a mask in another form, and None if it means `square`, else a word of the problem.
FORMS = {
    "cut-out": (Image.merge("RGBA", (*SKIN.split(), Image.fromarray(square()))), None),
    "grey cut-out": (Image.merge("LA", (SKIN.convert("L"), Image.fromarray(square()))), None),
    "opaque RGBA": (Image.fromarray(square()).convert("RGBA"), None),
    "opaque LA": (Image.fromarray(square()).convert("LA"), None),
    "RGB": (Image.fromarray(square()).convert("RGB"), None),
    "one bit": (Image.fromarray(square()).convert("1"), None),
    "white palette": (palette((255, 255, 255)), None),
    "green": (Image.merge("RGB", [Image.fromarray(square(v)) for v in (0, 255, 0)]), "coloured picture"),
    "palette of classes": (palette((0, 200, 0)), "coloured picture"),
    "photograph": (SKIN, "coloured picture"),
}


@pytest.mark.parametrize("form", FORMS)
def test_masks_in_other_forms_mean_the_same_to_every_reader(tmp_path, form):
    """A cut-out's alpha channel is the mask, not its brightness; colours are refused."""
    image, word = FORMS[form]
    images = write(tmp_path / "set", [square()] * NUM, "mask")
    dots.write_pictures(tmp_path / "a", dots.arc(NUM))
    dots.write_model(tmp_path / "a", dots.arc(NUM))
    (tmp_path / "a" / "masks").mkdir()
    for i in range(NUM):
        image.save(images.parent / "mask" / f"{i:05d}.png")
        large = image.resize((256, 256), Image.Resampling.NEAREST)
        large.save(tmp_path / "a" / "masks" / f"img_{i:03d}.png.png")
    if word is not None:
        assert len(validate_set(images)) == NUM and all(word in line for line in validate_set(images))
        for refused in (convert_set, lambda *a: import_colmap(tmp_path / "a", a[1])):
            with pytest.raises(DatasetError, match=rf"mask of .*00.*png: is a {word} and no mask"):
                refused(images, tmp_path / "out")
        return
    assert inspect_set(images).problems == [] and inspect_set(images).notes == []
    masks = ImageDataset(images).load([0]).masks
    assert masks is not None and np.array_equal(masks[0, 0].numpy(), square())
    convert_set(images, tmp_path / "out")
    import_colmap(tmp_path / "a", tmp_path / "imported", resolution=SIZE)
    for out in ("out", "imported"):
        mask = np.asarray(Image.open(next((tmp_path / out / "mask").iterdir())))
        assert mask[32, 32] == 255 and mask[2, 2] == 0 and np.abs(mask.astype(int) - square()).mean() < 8


@pytest.mark.parametrize("kind", ["colmap", "transforms", "alpha"])
@pytest.mark.parametrize(("masks", "word"), [(MASKS["0 and 1"]), (MASKS["inverted"]), (MASKS["empty"])])
def test_importers_judge_too(tmp_path, kind, masks, word):
    poses, big = dots.arc(NUM), [np.kron(mask, np.ones((4, 4), np.uint8)) for mask in masks]
    if kind == "colmap":
        dots.write_pictures(tmp_path / "a", poses)
        dots.write_model(tmp_path / "a", poses)
        (tmp_path / "a" / "masks").mkdir()
        for i in range(NUM):
            Image.fromarray(big[i]).save(tmp_path / "a" / "masks" / f"img_{i:03d}.png.png")
        run = import_colmap
    else:
        frame = (lambda i: {"mask_path": f"m{i}.png"}) if kind == "transforms" else (lambda i: {})
        dots.write_frames(tmp_path / "a", poses, {"fl_x": 200}, frame)
        for i in range(NUM):
            path = tmp_path / "a" / "images" / f"frame_{i:05d}.png"
            if kind == "alpha":
                Image.merge("RGBA", (*Image.open(path).split(), Image.fromarray(big[i]))).save(path)
            else:
                Image.fromarray(big[i]).save(tmp_path / "a" / f"m{i}.png")
        run = import_transforms
    with pytest.raises(DatasetError, match=word):
        run(tmp_path / "a", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_what_is_odd_and_no_fault_is_noted(tmp_path):
    def notes(name, masks):
        found = inspect_set(write(tmp_path / name, masks, "mask"))
        assert found.problems == []
        return " ".join(found.notes)

    assert "1 of 6 masks are empty" in notes("a", [square(0), *[square()] * (NUM - 1)])
    assert "every mask is full" in notes("b", MASKS["full"][0])
    dot = square(0)
    dot[30:33, 30:33] = 255
    assert "cover 0.22% of the pictures" in notes("c", [dot] * NUM)
    wide = np.full((SIZE, SIZE), 255, np.uint8)
    wide[:2] = 0
    assert "the subject runs out" in notes("d", [wide] * NUM)
    assert notes("e", [square()] * NUM) == "" and notes("f", [head()] * NUM) == ""


def test_notes_of_decoding_are_told_at_every_start(tmp_path):
    images = write(tmp_path / "set", [square(0), *[square()] * (NUM - 1)], "mask")
    first = validate_data(str(images), ImageDataset(images))
    assert "1 of 6 masks are empty" in first[0] and validate_data(str(images), ImageDataset(images)) == first


@pytest.mark.parametrize("shape", [(64, 48), (128, 64)])
def test_masks_of_another_shape_are_refused_not_stretched(tmp_path, shape):
    images = write(tmp_path / "set", [square()] * NUM, "mask")
    Image.new("L", shape, 255).save(tmp_path / "set" / "mask" / "00002.png")
    (problem,) = validate_set(images)
    assert f"mask/00002.png: is a mask of {shape[0]}x{shape[1]} pixels for a picture of 64x64" in problem
    with pytest.raises(DatasetError, match=r"00002\.png: is a mask of"):
        ImageDataset(images).load([2])
    assert tool("convert", images, f"--dest={tmp_path}/out")[0] == 1


def test_a_mask_of_another_size_is_resized(tmp_path):
    images = write(tmp_path / "set", [np.kron(square(), np.ones((2, 2), np.uint8))] * NUM, "mask")
    assert validate_set(images) == [] and ImageDataset(images).load([0]).masks[0, 0, 32, 32] == 255


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 2), (4, 4), (37, 80)])
def test_looks_of_any_size_are_those_of_plain_numpy(size):
    mask = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    look = mask_check.look_at(mask)
    assert look.most == mask.max() and look.levels == len(np.unique(mask))
    assert look.cover == pytest.approx(mask.mean() / 255) and 0 <= look.border <= 1 and 0 <= look.middle <= 1


# ---- alpha and size: no single file decides


@pytest.mark.parametrize("odd", [0, 3, NUM - 1])
def test_the_picture_without_alpha_is_named_wherever_it_stands(tmp_path, odd):
    """The case from the field, and the others of its kind."""

    def saver(image, path, index):
        alpha = Image.fromarray(square())
        (image if index == odd else Image.merge("RGBA", (*image.split(), alpha))).save(path)

    images = dots.write_set(tmp_path, dots.arc(NUM), saver=saver)
    code, output = tool("validate", images)
    assert code == 1 and f"{odd:05d}.png: has no alpha channel, unlike other pictures of the set" in output
    assert output.count("alpha channel") == 2  # the line, and the last one that repeats it
    with pytest.raises(DatasetError, match=f"{odd:05d}"):
        ImageDataset(images).load(range(NUM))


@pytest.mark.parametrize("odd", [0, 3])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_transparent_picture_among_opaque_ones_is_named_and_an_opaque_one_is_not(tmp_path, odd, mode):
    def saver(image, path, index, alpha=None):
        alpha = square() if alpha is None else alpha
        if index != odd:
            image.save(path)
        elif mode == "P":
            image.convert("P").save(path, transparency=image.convert("P").getpixel((2, 2)))
        else:
            bands = image.convert(mode[:-1]).split()
            Image.merge(mode, (*bands, Image.fromarray(alpha))).save(path)

    images = dots.write_set(tmp_path / "a", dots.arc(NUM), saver=saver)
    (problem,) = validate_set(images)
    assert f"{odd:05d}.png: has transparent pixels, and other pictures of the set have no alpha" in problem
    assert tool("convert", images, f"--dest={tmp_path}/out")[0] == 1
    if mode != "P":
        full = np.full((SIZE, SIZE), 255, np.uint8)
        images = dots.write_set(tmp_path / "b", dots.arc(NUM), saver=lambda *a: saver(*a, alpha=full))
        assert validate_set(images) == [] and not ImageDataset(images).has_masks


@pytest.mark.parametrize("odd", [0, 4])
def test_the_picture_of_another_size_is_named_wherever_it_stands(tmp_path, odd):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    Image.new("RGB", (32, 32)).save(images / f"{odd:05d}.png")
    (problem,) = validate_set(images)
    assert f"{odd:05d}.png: is 32x32 pixels, the set is 64x64" in problem
    dataset = ImageDataset(images)
    assert dataset.resolution == SIZE
    with pytest.raises(DatasetError, match=f"{odd:05d}"):
        dataset.load(range(NUM))


def test_alpha_beside_files_of_masks_is_noted(tmp_path):
    images = write(tmp_path, [square()] * NUM, "alpha")
    (tmp_path / "mask").mkdir()
    for i in range(NUM):
        Image.fromarray(head()).save(tmp_path / "mask" / f"{i:05d}.png")
    found = inspect_set(images)
    assert found.problems == [] and "not the alpha channel" in found.notes[0]
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"]
    assert ImageDataset(images).load([0]).masks[0, 0, 60, 5] == 255
