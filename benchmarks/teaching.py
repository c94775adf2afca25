"""How much corrections teach a champion in a short retraining: what is learned, what it costs, what the gate lets pass.

`python benchmarks/teaching.py` needs no photos: it takes the replay of the bundle that ships. Its held-out photos are
grouped into kinds (k-means on their features); for one kind at a time, a person labels some of them against all that
the model knew. Printed, for each weight of a correction: the share of these photos that are answered as the person said
afterwards, the same for photos of the kind that nobody showed (and before), and how often the model is right no less
often than before on test photos of other kinds, which is what the gate asks.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from trainer import bundle, heads, lessons, replay, teaching
from trainer.bundle import Bundle
from trainer.heads import Last
from trainer.manifest import Manifest
from trainer.replay import Replay

KINDS, DRAWS, SPARE = 25, 4, 12
WEIGHTS = (1.0, 3.0, teaching.OWN_WEIGHT)


@dataclass(frozen=True)
class Model:
    """A last layer of two classes, and its threshold."""

    last: Last
    threshold: float


@dataclass(frozen=True)
class Bench:
    """The bundle, what it keeps of the photos that it was made from, and the kinds of those that it did not learn."""

    known: Replay
    manifest: Manifest
    champion: Model
    kinds: list[NDArray[np.int_]]

    @classmethod
    def of(cls, champion: Bundle) -> "Bench":
        """Group the held-out photos."""
        known = replay.read(champion)
        assert known is not None
        pool = np.flatnonzero(known.splits != 0)
        found = KMeans(KINDS, random_state=0, n_init=3).fit_predict(known.features[pool].astype(np.float32))
        model = Model(teaching.opened(champion).last, champion.manifest.threshold or bundle.THRESHOLD)
        return cls(known, champion.manifest, model, [pool[found == kind] for kind in range(KINDS)])

    def answers(self, model: "Model", rows: NDArray[np.int_]) -> NDArray[np.int_]:
        """Return what a model says of photos."""
        return (heads.probabilities(self.known.features[rows], model.last)[:, 1] >= model.threshold).astype(int)

    def taught(self, shown: NDArray[np.int_], label: int, weight: float) -> Model:
        """Return the model that learned that these photos are of class `label`."""
        photos = [SimpleNamespace(label=label, split="train", sha256=f"{n:064x}") for n in range(len(shown))]
        merged, own = lessons.merged(self.known, photos, self.known.features[shown])  # type: ignore[arg-type]
        last = teaching.fit(merged, own, 2, weight)
        return Model(last, teaching.threshold(merged, last, self.manifest) or bundle.THRESHOLD)

    def one(self, members: NDArray[np.int_], shown: int, weight: float, seed: int) -> tuple[float, ...]:
        """Teach photos of a kind, and return the four figures."""
        order = np.random.default_rng([seed, *members[:2]]).permutation(members)
        own, rest = order[:shown], order[shown:]
        label = int(self.answers(self.champion, members).mean() <= 1 / 2)  # what the model does not say
        now = self.taught(own, label, weight)
        others = np.setdiff1d(np.flatnonzero(self.known.splits == 2), members)
        right = [(self.answers(which, others) == self.known.labels[others]).sum() for which in (now, self.champion)]
        said = ((self.answers(which, rows) == label).mean() for which, rows in ((now, own), (now, rest),
                                                                               (self.champion, rest)))  # fmt: skip
        return (*said, float(right[0] >= right[1]))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shown", type=int, nargs="*", default=[10, 30], help="photos that a person labels")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle.install_shipped(Path(folder))
        bench = Bench.of(bundle.load(Path(folder)))
    print(" shown  weight  learned  others of the kind   before  gate passed     n")
    for shown in asked.shown:
        for weight in WEIGHTS:
            kinds = [members for members in bench.kinds if len(members) >= shown + SPARE]
            found = np.array([bench.one(m, shown, weight, seed) for m in kinds for seed in range(DRAWS)])
            learned, others, before, passed = found.mean(axis=0)
            print(f"{shown:6} {weight:7.0f} {learned:8.0%} {others:19.0%} {before:8.0%} {passed:12.0%} {len(found):5}")


if __name__ == "__main__":
    main()
