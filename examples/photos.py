"""A timm network on a folder of photos as they come, from a ``.pth`` file to 60 % of its latency, by the command line.

    python examples/photos.py --out runs/photos
    python examples/photos.py --photos path/to/photos --model resnet18 --weights resnet18.pth --out runs/photos

The folder has one folder of images per class under ``train`` and ``val``. Grey, palette and RGBA images become RGB; a
file that is torn or no image is named and left out (``--bad-images`` says how many may be); a class without images is
refused by name. The weights are of another number of classes, under the prefix of a wrapper: ``--reset-head`` draws the
head anew.

Each step prints its command. The run's folder holds metrics.csv, the report, and the network; it is then copied and
loaded there, as on another machine: with the preprocessing and the names of the classes, and trained on.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import halpiee

SIZE = 64


def make_photos(folder: Path, train: int = 24, val: int = 8) -> Path:
    """Makes a folder of three classes, each of a strong colour; some images are grey, RGBA, torn, or empty."""
    random = np.random.default_rng(0)
    for split, n in (("train", train), ("val", val)):
        for label, name in enumerate(("cat", "dog", "owl")):
            place = folder / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                values = random.integers(0, 120, (int(random.integers(48, 90)), SIZE, 3), dtype=np.uint8)
                values[..., label] += 100
                mode = {1: "L", 2: "RGBA"}.get(i % 12, "RGB")
                Image.fromarray(values).convert(mode).save(place / f"{i}.png")
    whole = (folder / "train" / "cat" / "0.png").read_bytes()
    (folder / "train" / "cat" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / "dog" / "empty.jpg").touch()
    return folder


def make_weights(name: str, path: Path) -> Path:
    """Stands in for the file that you have: a checkpoint of 1,000 classes, written from a wrapped model."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=1000)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm draws those of residual branches as zeros
            torch.nn.init.ones_(module.weight)
    state = network.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    return path


def run(*words: object) -> None:
    """Prints and runs a command; a network that misses its promise (exit code 4) is still there."""
    print("halpiee", shlex.join(map(str, words)))
    done = subprocess.run([sys.executable, "-m", "halpiee", *map(str, words)], check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(done.returncode)


def main(
    out: Path, model: str = "test_resnet", photos: Path | None = None, weights: Path | None = None
) -> dict[str, str]:
    """Trains, exports, loads elsewhere and trains on; returns what the network that was loaded says of each class."""
    out.mkdir(parents=True, exist_ok=True)
    photos = photos or make_photos(out / "photos")
    weights = weights or make_weights(model, out / "start.pth")
    there, elsewhere = out / "run", out / "elsewhere"

    given = ("--data", photos, "--weights", weights, "--reset-head", "--size", SIZE)
    run("train", f"timm/{model}", *given, "--budget", 0.6, "--epochs", 4, "--batch-size", 8, "--out", there)
    run("export", there, "--precision", "fp16", "--out", out / "half.onnx")
    run("export", there, "--int8", "--out", out / "int8.onnx")

    shutil.copytree(there, elsewhere)
    network = halpiee.load(elsewhere)
    prepare, said = network.preprocess, {}
    for place in sorted((photos / "val").iterdir()):
        with Image.open(next(place.iterdir())) as photo, torch.no_grad():
            said[place.name] = prepare.classes[int(network(prepare(photo)).argmax())]
    run(
        "train",
        "--from-run",
        elsewhere,
        "--data",
        photos,
        "--epochs",
        1,
        "--lr",
        0.01,
        "--out",
        out / "tuned",
    )
    return said


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    asked = parser.parse_args()
    for name, answer in main(asked.out, asked.model, asked.photos, asked.weights).items():
        print(f"a photo of {name}: {answer}")
