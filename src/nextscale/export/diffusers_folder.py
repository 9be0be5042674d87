"""A model as a folder that `diffusers.DiffusionPipeline.from_pretrained` loads with ``trust_remote_code``.

Special here: the two Python files in it are short, the same for every model, and call the installed package;
diffusers itself is needed by those who load the folder alone.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from nextscale import checkpoint
from nextscale.generate.folder import read_settings
from nextscale.models import find_model
from nextscale.models.hub import MODEL_FILES, PROVENANCE

#: What models need at least; written into the folder.
_DIFFUSERS = "0.42.0"
_FILES = Path(__file__).parent / "diffusers_files"


def export_diffusers(model: str | Path, out: Path) -> None:
    """Write ``model_index.json``, ``pipeline.py`` and the model folder with its ``modeling.py``.

    Args:
        model: what `find_model` takes; of any family.
        out: new folder.

    Raises:
        ValueError: no such model, or it has no prior.
    """
    home = find_model(model)
    if read_settings(home).prior is None:
        raise ValueError(f"{model} holds a tokenizer but no prior: a pipeline needs one that makes images")
    index = {
        "_class_name": ["pipeline", "NextscalePipeline"], "_diffusers_version": _DIFFUSERS,
        "model": ["modeling", "NextscaleModel"],
    }  # fmt: skip
    with checkpoint.new_folder(out) as place:
        (place / "model").mkdir()
        for name in (*MODEL_FILES, PROVENANCE):
            if (home / name).is_file():
                shutil.copyfile(home / name, place / "model" / name)
        shutil.copyfile(_FILES / "modeling.py", place / "model" / "modeling.py")
        shutil.copyfile(_FILES / "pipeline.py", place / "pipeline.py")
        checkpoint.write_json(place / "model_index.json", index)
