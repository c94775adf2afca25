"""Files with the same content: one of each is looked at, the others share its fate.

Invariant: a content that lies in two classes is used in neither; of equal files in one class the first by name stands
for all, and where it is left out, they are left out for the same reason.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.progress import printable
from trainer.splits import Drawn, Found


@dataclass(frozen=True, slots=True)
class Unused:
    """A file that is not used, and why; `of` are the paths of the files that it is compared with.

    `kind`: "broken" (no picture in it), "unreadable", "beside" (the class folders), "double" (of a photo that is used),
    "contradiction" (the same photo, or nearly, in two classes) or "bridge" (a twin of photos in two splits).
    """

    path: str
    reason: str
    kind: str = "unreadable"
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unique:
    """One photo of each content, the other files' paths by its sha256, and what is in two classes."""

    photos: Sequence[Found]
    copies: Mapping[str, Sequence[str]]
    contradictions: Sequence[Unused]

    def unused(self, drawn: Drawn) -> list[Unused]:
        """Return all that is not used, once it is known which photos are."""
        found = list(self.contradictions)
        for photo in self.photos:
            left = drawn.left_out.get(photo.sha256)
            for path in self.copies[photo.sha256]:
                if left:
                    found.append(Unused(path, left.reason, left.kind, left.of))
                else:
                    found.append(Unused(path, f"the same photo as {printable(photo.path)}", "double", (photo.path,)))
            if left:
                found.append(Unused(photo.path, left.reason, left.kind, left.of))
        return found


def unique(files: Sequence[Found], class_names: Sequence[str]) -> Unique:
    """Keep one of each content; none of them where the same content is in two classes."""
    by_hash: dict[str, list[Found]] = defaultdict(list)
    for file in files:
        by_hash[file.sha256].append(file)
    one_class = {s: same for s, same in by_hash.items() if len({file.label for file in same}) == 1}
    torn = [same for sha256, same in by_hash.items() if sha256 not in one_class]
    return Unique(
        [same[0] for same in one_class.values()],
        {sha256: [file.path for file in same[1:]] for sha256, same in one_class.items()},
        [unused for same in torn for unused in _contradiction(same, class_names)],
    )


def _contradiction(same: Sequence[Found], class_names: Sequence[str]) -> list[Unused]:
    where = " and ".join(repr(class_names[label]) for label in sorted({file.label for file in same}))
    reason = f"the same photo is in {where}: remove the wrong one"
    others = {file.path: tuple(o.path for o in same if o.label != file.label) for file in same}
    return [Unused(path, reason, "contradiction", of) for path, of in others.items()]
