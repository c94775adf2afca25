"""The plan of a training: the [trainer] settings, with the architecture's own values where they say nothing.

Invariant: a plan that exists can be carried out: the architecture is known and takes pictures of that size.
"""

from dataclasses import dataclass

import keras

from trainer import model
from trainer.manifest import FaceRules
from trainer.tables import Trainer

HEAD_EPOCHS, HEAD_RATE = 100, 1e-3  # of a logistic head on cached features: an epoch takes less than a second


@dataclass(frozen=True)
class Plan:
    """What is trained and how; `epochs` and `learning_rate` are those of the scene's last stage.

    `faces`: how they are found and cut out; None where the scene alone is looked at.
    """

    architecture: model.Architecture
    image_size: int
    batch_size: int
    epochs: int
    learning_rate: float
    seed: int
    fine_tune: bool
    label_smoothing: float
    drop_suspects: float
    faces: FaceRules | None = None

    @classmethod
    def of(cls, asked: Trainer) -> "Plan":
        """Resolve the [trainer] table. Raises ArchitectureError."""
        own = model.find(asked.architecture)
        size = asked.image_size or own.image_size
        if size < own.smallest:
            raise model.ArchitectureError(f"image_size {size}: {own.name} needs at least {own.smallest}")
        fine_tune = asked.fine_tune and bool(own.cut)
        head_only = own.backbone is not None and not fine_tune
        return cls(
            architecture=own,
            image_size=size,
            batch_size=asked.batch_size,
            epochs=asked.epochs or (HEAD_EPOCHS if head_only else own.epochs),
            learning_rate=asked.learning_rate or (HEAD_RATE if head_only else own.learning_rate),
            seed=asked.seed,
            fine_tune=fine_tune,
            label_smoothing=asked.label_smoothing,
            drop_suspects=asked.drop_suspects,
            faces=FaceRules() if "faces" in asked.views else None,
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        if self.architecture.backbone is None:
            return ("whole",)
        return ("head", "fine_tune") if self.fine_tune else ("head",)

    def backbone(self) -> keras.Model | None:
        """Return the pretrained part; None where all is trained. Raises ArchitectureError, DownloadError."""
        build = self.architecture.backbone
        return None if build is None else build(self.image_size)
