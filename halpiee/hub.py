"""A finished run as a folder that the Hugging Face hub can hold: what loads it again, and a model card.

    halpiee.push("runs/cifar", "hub/cifar")                          # writes a folder; needs no network
    halpiee.push("runs/cifar", "hub/cifar", repository="me/cifar")   # and uploads it with the package huggingface_hub
    model = halpiee.load("hub/cifar")

The folder is a run: ``halpiee export``, ``bench`` and ``report`` take it as they take the folder of the training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halpiee.errors import MissingError, OutputInUseError, UsageError
from latency.files import write

KEPT = (
    "settings.json",
    "report.json",
    "plan.json",
    "pruned.safetensors",
    "mask.safetensors",
    "pruned.onnx",
    "profile.jsonl",
    "calibration.json",
)
"""Files of a run that the folder holds, where the run has them; checkpoints and the dense network stay behind."""


def push(run: str | Path, out: str | Path, *, repository: str | None = None) -> Path:
    """Writes a run as a folder for the Hugging Face hub, and uploads it where a repository is named.

    The folder ``out`` must not exist; without a repository (``owner/name``) nothing leaves this machine.

    Returns:
        The folder, with ``README.md``, the model card, beside the files in ``KEPT``.

    Raises:
        UsageError: no finished run.
        OutputInUseError: the folder exists.
        MissingError: a repository was named and huggingface_hub is not installed.
    """
    from halpiee.report import read_report, render_card

    run, out = Path(run), Path(out)
    if not (run / "report.json").is_file() or not (run / "pruned.safetensors").is_file():
        raise UsageError(
            f"{run} was to be pushed and holds no finished run; finish it with `halpiee train --resume --out {run}`"
        )
    if out.exists():
        raise OutputInUseError(f"{out} was to be written and exists; name a new folder")
    upload = None if repository is None else _uploader()
    card = render_card(read_report(run), load=repository or str(out))
    for name in KEPT:
        if (run / name).is_file():
            write(out / name, (run / name).read_bytes())
    write(out / "README.md", card)
    if upload is not None and repository is not None:
        upload.create_repo(repository, exist_ok=True)
        upload.upload_folder(repo_id=repository, folder_path=str(out))
    return out


def _uploader() -> Any:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise MissingError(
            "uploading needs the package huggingface_hub, which is not installed; type pip install huggingface_hub, or "
            "leave the repository out and upload the folder by hand"
        ) from error
    return HfApi()
