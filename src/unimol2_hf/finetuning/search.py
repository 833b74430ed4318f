"""A search for the settings of training over the paper's grid, with Optuna: pruned, gone on with after a kill."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerCallback

from ..errors import ModelError, SettingsError
from .settings import FinetuneSettings

# arXiv 2406.14969, appendix: fine-tuning.
GRID: dict[str, tuple[Any, ...]] = {
    "learning_rate": (4e-5, 6e-5, 1e-4, 2e-4, 3e-4, 4e-4),
    "batch_size": (32, 64, 128),
    "epochs": (40, 60, 80, 100, 200, 300),
    "pooler_dropout": (0.0, 0.1),
    "warmup": (0.0, 0.06, 0.1),
}
TRIALS_FILE = "trials.log"

TrainAndScore = Callable[[FinetuneSettings, Path, TrainerCallback], float]


def searched(settings: FinetuneSettings) -> dict[str, tuple[Any, ...]]:
    """What is searched: the grid but for what was given."""
    given = settings.options_of_training
    return {name: values for name, values in GRID.items() if name not in given}


def search(
    settings: FinetuneSettings,
    folder: Path,
    train_and_score: TrainAndScore,
    console: Console,
) -> FinetuneSettings:
    """The settings whose best epoch has the best score on the validation part.

    Trials worse than the median of those before at the same epoch are stopped. A trial that was killed goes on.

    Args:
        settings: of the run; what is given stays.
        folder: for the trials.
        train_and_score: trains with certain settings in a folder, a callback watching; returns the score, lower is
            better.
        console: where it is told how far it has come.

    Raises:
        SettingsError: Optuna is not installed, or everything that could be searched is given.
        ModelError: training diverged in every trial.
    """
    optuna = _optuna()
    grid = searched(settings)
    if not grid:
        raise SettingsError("there is nothing to search: learning rate, batch size, epochs and the rest are given")
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / TRIALS_FILE)))
    study = optuna.create_study(
        storage=storage,
        study_name="search",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1),
    )
    while (number := len(study.get_trials(states=_ended(optuna)))) < settings.search:
        # The same trials in a run that was killed and in one that was not.
        study.sampler = optuna.samplers.TPESampler(seed=settings.seed + number)
        killed = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
        trial = optuna.trial.Trial(study, killed[0]._trial_id) if killed else study.ask(_distributions(optuna, grid))
        console.print(f"trial {number + 1} of {settings.search}: {_told(trial.params)}", highlight=False)
        own = folder / f"trial-{trial.number}"
        score, state = _run_trial(optuna, trial, replace(settings, **trial.params), own, train_and_score)
        study.tell(trial, score, state)
        shutil.rmtree(own, ignore_errors=True)
    complete = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    if not complete:
        raise ModelError(f"training diverged in all {settings.search} trials of the search; look at the labels")
    best = min(complete, key=lambda each: each.value)
    console.print(f"best trial, score {best.value:.4g}: {_told(best.params)}", highlight=False)
    return replace(settings, **best.params)


class _Watch(TrainerCallback):
    """Reports each epoch's score, and stops a trial that Optuna gives up."""

    def __init__(self, trial: Any) -> None:
        self._trial, self.pruned = trial, False

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        epoch = round(state.epoch)
        if epoch not in self._trial.study._storage.get_trial(self._trial._trial_id).intermediate_values:
            self._trial.report(metrics["eval_score"], epoch)
        self.pruned = self._trial.should_prune()
        control.should_training_stop |= self.pruned


def _run_trial(
    optuna: Any, trial: Any, settings: FinetuneSettings, folder: Path, train_and_score: TrainAndScore
) -> tuple[float | None, Any]:
    """Score and state of a trial."""
    watch, states = _Watch(trial), optuna.trial.TrialState
    try:
        score = train_and_score(settings, folder, watch)
    except ModelError:  # training diverged
        return None, states.FAIL
    return (None, states.PRUNED) if watch.pruned else (score, states.COMPLETE)


def _ended(optuna: Any) -> tuple[Any, ...]:
    states = optuna.trial.TrialState
    return states.COMPLETE, states.PRUNED, states.FAIL


def _distributions(optuna: Any, grid: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    return {name: optuna.distributions.CategoricalDistribution(values) for name, values in grid.items()}


def _told(parameters: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in parameters.items())


def _optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415
    except ImportError as error:
        raise SettingsError('search needs Optuna; pip install "unimol2-hf[search]"') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
