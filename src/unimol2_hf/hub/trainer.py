"""The Trainer that publishes: what it pushes loads without this package."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from ..errors import SettingsError
from ..training.trainer import UniMol2Trainer as Trainer
from .publish import write_repositories
from .push import push_folder, with_owner
from .settings import PublishSettings


class UniMol2Trainer(Trainer):
    __doc__ = Trainer.__doc__

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Publish the model as `unimol2-hf publish` does: code, card, reference outputs and checksums, in one commit.

        Checkpoints, `training_args.bin` (a pickle) and whatever else lies in `output_dir` stay here. The card's quick
        start names `main`, which the next push moves; `unimol2-hf publish --push` tags what others are to rely on.

        Args:
            commit_message: of the commit.
            blocking: must be True; nothing is pushed before it is checked.
            token: default: `args.hub_token`, or that of `hf auth login`.
            revision: must be None, `main`.
            private: of a repository that is new; default: `args.hub_private_repo`.
            **kwargs: `license` of the weights; others, which describe Trainer's own card, are not known.

        Returns:
            The commit's id; None on processes but the first.

        Raises:
            SettingsError: an argument that cannot be followed.
            ModelError: the saved model does not answer as it should, or there is no feature extractor
                (`processing_class`).
            HubError: it cannot be pushed.
        """
        license_ = kwargs.pop("license", None)
        refused = ["blocking=False"] * (not blocking) + ["revision"] * (revision not in (None, "main")) + list(kwargs)
        if refused:
            raise SettingsError(
                f"push_to_hub cannot follow {', '.join(refused)}: it makes one checked commit on main, with a card"
            )
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        output_dir = Path(self.args.output_dir)
        token = token or self.args.hub_token
        repo_id = with_owner(self.args.hub_model_id or output_dir.resolve().name, token)
        settings = PublishSettings(push=repo_id, revision="main", model_license=license_)
        with TemporaryDirectory() as name:
            ((_, folder),) = write_repositories(str(output_dir), Path(name), settings, Console(quiet=True))
            return push_folder(
                folder,
                repo_id,
                message=commit_message or "End of training",
                private=bool(self.args.hub_private_repo if private is None else private),
                token=token,
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: what has not been checked is not pushed, and a checkpoint holds pickles."""
