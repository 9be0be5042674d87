"""Where images come from. `find.open_source` takes what a user typed and gives a `Source`.

folder: images on disk. archive: zip and tar files. shards: what lies in a tar, with or without labels.
parquet, hugging_face: tables. base: what all of them share.
"""

from nextscale.data.sources.base import BadImageError, Source, Subset, hold_out
from nextscale.data.sources.find import open_source

__all__ = ["BadImageError", "Source", "Subset", "hold_out", "open_source"]
