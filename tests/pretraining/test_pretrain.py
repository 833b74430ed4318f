"""Pretraining runs: killed and gone on, shared among processes, averaged, and stopped by a loss that is not finite."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from kills import run_killed, run_whole
from pretraining_jobs import TINY_MODEL, WITHOUT_DROPOUT, tiny_settings, train
from pretraining_runs import LOSS_NAMES, assert_same_losses, history_of, jobs, train_in_two_processes
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForPreTraining

from unimol2_hf import ModelError, UniMol2Config, UniMol2ForPreTraining
from unimol2_hf.cli.options import read_settings
from unimol2_hf.errors import OutputFolderError, SettingsError
from unimol2_hf.pretraining.losses import validation_metrics, validation_sums
from unimol2_hf.pretraining.pretrain import make_data, make_model, pretrain
from unimol2_hf.pretraining.settings import PretrainSettings
from unimol2_hf.pretraining.stream import Share
from unimol2_hf.training.checkpoints import last_complete_checkpoint

pytestmark = pytest.mark.numerical

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, library_dir: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_whole(jobs(), train, str(library_dir), str(folder))
    return folder


class TestResume:
    @pytest.mark.slow
    def test_killed_ten_times_it_ends_with_the_same_losses(
        self,
        tmp_path: Path,
        whole_run: Path,
        library_dir: Path,
    ) -> None:
        def steps() -> int:
            last = last_complete_checkpoint(tmp_path / "killed" / "checkpoints")
            return 0 if last is None else int(last.name.split("-")[1]) // 2

        arguments = (str(library_dir), str(tmp_path / "killed"))
        killed = run_killed(jobs(), train, arguments, steps, 12, 10, 0.1, 4)
        assert killed.kills == 10
        assert {step for step in killed.progress_at_kills if 0 < step < 12}
        assert_same_losses(tmp_path / "killed", whole_run, 1e-6)
        one, other = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "killed", whole_run))
        for name, value in one.items():
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("lost", ["nothing", "the model"])
    def test_a_run_at_its_end_makes_no_further_step(self, tmp_path: Path, library_dir: Path, lost: str) -> None:
        """Started again it writes the model that it has, also where it was killed before it had."""
        settings = tiny_settings(str(library_dir), str(tmp_path), max_steps=6)
        pretrain(settings, QUIET)
        before = load_file(tmp_path / "model" / "model.safetensors")
        if lost == "the model":
            shutil.rmtree(tmp_path / "model")
            (tmp_path / "log_history.json").unlink()
        history = pretrain(settings, QUIET)
        after = load_file(tmp_path / "model" / "model.safetensors")
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert max(entry["step"] for entry in history) == 6
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-4", "checkpoint-6"]

    def test_a_checkpoint_cut_short_is_not_gone_on_from(
        self,
        tmp_path: Path,
        library_dir: Path,
        whole_run: Path,
    ) -> None:
        pretrain(tiny_settings(str(library_dir), str(tmp_path), max_steps=24), QUIET)
        folder = tmp_path / "checkpoints"
        (folder / "checkpoint-24" / "complete.json").unlink()
        (folder / "checkpoint-24" / "optimizer.pt").write_bytes(b"cut")
        pretrain(tiny_settings(str(library_dir), str(tmp_path), max_steps=24), QUIET)
        assert_same_losses(tmp_path, whole_run, 1e-5)

    def test_it_goes_on_with_other_micro_batches(self, tmp_path: Path, library_dir: Path) -> None:
        changes: dict[str, Any] = {"model": {**TINY_MODEL, **WITHOUT_DROPOUT}, "max_steps": 4, "ema_decay": None}
        pretrain(tiny_settings(str(library_dir), str(tmp_path / "whole"), **changes), QUIET)
        pretrain(tiny_settings(str(library_dir), str(tmp_path / "other"), **changes), QUIET)
        folder = tmp_path / "other" / "checkpoints" / "checkpoint-4"
        (folder / "complete.json").unlink()
        pretrain(tiny_settings(str(library_dir), str(tmp_path / "other"), **{**changes, "max_rows": 2}), QUIET)
        assert_same_losses(tmp_path / "whole", tmp_path / "other", 2e-5)

    def test_another_runs_folder_is_refused(self, library_dir: Path, whole_run: Path) -> None:
        with pytest.raises(OutputFolderError, match="learning_rate"):
            pretrain(tiny_settings(str(library_dir), str(whole_run), learning_rate=1e-4), QUIET)


FSDP = {"fsdp": "full_shard", "fsdp_config": {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["UniMol2Layer"]}}


class TestStartFrom:
    """A run that begins with a pretrained model's weights, the packaged one's or a user's."""

    def pretrained(self, folder: Path, **fields: Any) -> UniMol2ForPreTraining:
        torch.manual_seed(5)
        model = UniMol2ForPreTraining(UniMol2Config.from_scale("micro", **{**TINY_MODEL, **fields}))
        model.save_pretrained(folder)
        return model

    def test_config_and_weights_are_its_own(self, tmp_path: Path) -> None:
        expected = self.pretrained(tmp_path, vocab_size=200)
        settings = PretrainSettings("library", "run", start_from=str(tmp_path), model={"hidden_dropout_prob": 0.0})
        model = make_model(settings)
        assert (model.config.vocab_size, model.config.hidden_dropout_prob) == (200, 0.0)
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value)

    def test_a_run_goes_on_from_it(self, tmp_path: Path, library_dir: Path) -> None:
        """Its validation before the first large step is the model's own, not a random model's."""
        first = tiny_settings(str(library_dir), str(tmp_path / "first"), max_steps=120, eval_steps=120, save_steps=120)
        pretrain(first, QUIET)
        settings = tiny_settings(
            str(library_dir),
            str(tmp_path / "second"),
            start_from=str(tmp_path / "first" / "model"),
            model={},
            max_steps=1,
            eval_steps=1,
            ema_decay=None,
            learning_rate=1e-8,
        )
        pretrain(settings, QUIET)
        model = UniMol2ForPreTraining.from_pretrained(tmp_path / "first" / "model")
        expected = validation_metrics(validation_sums(model, make_data(settings, Share())[3]))
        (found,) = [entry for entry in history_of(tmp_path / "second") if "eval_loss" in entry]
        assert found["eval_loss"] == pytest.approx(expected["loss"], rel=1e-4)

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [({"hidden_sise": 3}, "no field 'hidden_sise'"), ({"hidden_size": 64}, "cannot be used with these fields")],
    )
    def test_fields_that_do_not_fit_are_named(self, tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
        self.pretrained(tmp_path)
        with pytest.raises(ModelError, match=problem):
            make_model(PretrainSettings("library", "run", start_from=str(tmp_path), model=fields))

    def test_a_folder_without_a_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="start_from"):
            make_model(PretrainSettings("library", "run", start_from=str(tmp_path)))

    def test_an_encoder_alone_is_refused(self, tmp_path: Path) -> None:
        """Heads of random weights would be taken for pretrained ones."""
        self.pretrained(tmp_path).unimol2.save_pretrained(tmp_path / "encoder")
        with pytest.raises(ModelError, match="no usable weights for coordinate_head"):
            make_model(PretrainSettings("library", "run", start_from=str(tmp_path / "encoder")))


class TestProcesses:
    @pytest.mark.parametrize("trainer", [{}, FSDP], ids=["ddp", "fsdp"])
    def test_two_processes_train_as_one(self, tmp_path: Path, library_dir: Path, trainer: dict[str, Any]) -> None:
        changes: dict[str, object] = {
            "model": {**TINY_MODEL, **WITHOUT_DROPOUT},
            "max_steps": 8,
            "ema_decay": None if trainer else 0.9,
        }
        run_whole(jobs(), train, str(library_dir), str(tmp_path / "one"), changes)
        train_in_two_processes(library_dir, tmp_path / "two", {**changes, "trainer": trainer})
        assert_same_losses(tmp_path / "one", tmp_path / "two", 2e-5)
        one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)

    def test_an_average_of_sharded_weights_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="ema_decay"):
            PretrainSettings(data="library", output_dir="run", ema_decay=0.9, trainer=FSDP)


class TestLosses:
    def test_a_step_is_one_batch_however_it_is_cut(self, library_dir: Path, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"model": {**TINY_MODEL, **WITHOUT_DROPOUT}, "max_steps": 4, "ema_decay": None}
        for name, rows in (("small", 2), ("large", 8)):
            pretrain(tiny_settings(str(library_dir), str(tmp_path / name), max_rows=rows, **changes), QUIET)
        assert_same_losses(tmp_path / "small", tmp_path / "large", 2e-5)

    def test_logged_losses_are_the_models(self, library_dir: Path, tmp_path: Path) -> None:
        """The first step's, computed apart from the Trainer."""
        settings = tiny_settings(
            str(library_dir),
            str(tmp_path / "run"),
            model={**TINY_MODEL, **WITHOUT_DROPOUT},
            max_steps=4,
            max_rows=8,
            max_pairs=10**6,
        )
        pretrain(settings, QUIET)
        from transformers import set_seed

        set_seed(settings.seed)
        model = make_model(settings).train()
        _, _, stream, _ = make_data(settings, Share())
        (batch,) = stream.step(0)["micro_batches"]
        output = model(**batch)
        first = history_of(tmp_path / "run")[0]
        for name in LOSS_NAMES:
            assert first[name] == pytest.approx(float(output[name]), rel=1e-5)

    def test_the_three_losses_are_logged_apart_and_fall(self, library_dir: Path, tmp_path: Path) -> None:
        settings = tiny_settings(
            str(library_dir), str(tmp_path), max_steps=120, logging_steps=20, eval_steps=40, save_steps=40
        )
        pretrain(settings, QUIET)
        training = [entry for entry in history_of(tmp_path) if "loss" in entry]
        for entry in training:
            parts = sum(entry[name] for name in LOSS_NAMES[1:])
            assert entry["loss"] == pytest.approx(parts, rel=1e-4)
        assert training[-1]["token_loss"] < training[0]["token_loss"] - 1
        validation = [entry for entry in history_of(tmp_path) if "eval_loss" in entry]
        assert validation[-1]["eval_token_loss"] < validation[0]["eval_token_loss"]

    def test_in_bfloat16_the_losses_are_nearly_those_of_float32(self, library_dir: Path, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"model": {**TINY_MODEL, **WITHOUT_DROPOUT}, "max_steps": 4, "ema_decay": None}
        for precision in ("bfloat16", "float32"):
            settings = tiny_settings(str(library_dir), str(tmp_path / precision), precision=precision, **changes)
            pretrain(settings, QUIET)
        assert_same_losses(tmp_path / "bfloat16", tmp_path / "float32", 0.02)
        ones = [history_of(tmp_path / name)[0]["loss"] for name in ("bfloat16", "float32")]
        assert ones[0] != ones[1]

    @pytest.mark.slow
    @pytest.mark.timeout(900)  # the compiler takes its time
    def test_compiled_the_losses_are_the_same(self, library_dir: Path, tmp_path: Path) -> None:
        changes: dict[str, Any] = {"model": {**TINY_MODEL, **WITHOUT_DROPOUT}, "max_steps": 4, "ema_decay": None}
        torch.compiler.reset()
        for compile in (True, False):
            settings = tiny_settings(str(library_dir), str(tmp_path / str(compile)), compile=compile, **changes)
            pretrain(settings, QUIET)
        torch.compiler.reset()
        assert_same_losses(tmp_path / "True", tmp_path / "False", 1e-4)

    def test_validation_is_the_same_for_every_seed(self, library_dir: Path) -> None:
        made = [make_data(tiny_settings(str(library_dir), "unused", seed=seed), Share())[3] for seed in (0, 1)]
        for one, other in zip(*made, strict=True):
            for name, value in one.items():
                assert torch.equal(value, other[name])

    def test_validation_metrics_against_one_batch(self, library_dir: Path) -> None:
        settings = tiny_settings(str(library_dir), "unused", max_rows=100, max_pairs=10**6)
        model = make_model(settings)
        _, _, _, (batch,) = make_data(settings, Share())
        _, _, _, cut = make_data(tiny_settings(str(library_dir), "unused", max_rows=2), Share())
        found = validation_metrics(validation_sums(model, cut))
        with torch.no_grad():
            output = model.eval()(**batch)
        assert found["loss"] == pytest.approx(float(output.loss), rel=1e-5)
        atoms = batch["attention_mask"].bool()
        noise = (batch["coordinates"] - batch["target_coordinates"])[atoms]
        assert found["noise_rmse"] == pytest.approx(float(noise.square().mean().sqrt()), rel=1e-5)
        hidden = batch["labels"] != -100
        right = (output.token_logits.argmax(-1) == batch["labels"])[hidden].float().mean()
        assert found["token_accuracy"] == pytest.approx(float(right), rel=1e-6)

    def test_a_loss_that_is_not_finite_stops_the_run(
        self,
        library_dir: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        original = UniMol2ForPreTraining.forward
        calls = iter(range(1000))

        def diverging(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = original(self, *args, **kwargs)
            if next(calls) > 20:
                output.token_loss = output.token_loss * float("inf")
            return output

        monkeypatch.setattr(UniMol2ForPreTraining, "forward", diverging)
        with pytest.raises(ModelError, match="not finite"):
            pretrain(tiny_settings(str(library_dir), str(tmp_path), validation_molecules=0), QUIET)
        (saved,) = (tmp_path / "checkpoints").glob("not_finite_step_*.safetensors")
        assert any(name.endswith(".coordinates") for name in load_file(saved))
        kept = last_complete_checkpoint(tmp_path / "checkpoints")
        assert kept is not None
        for value in load_file(kept / "model.safetensors").values():
            assert torch.isfinite(value).all()


class TestOutput:
    def test_the_average_is_what_is_exported(self, whole_run: Path) -> None:
        last = last_complete_checkpoint(whole_run / "checkpoints")
        assert last is not None
        exported = load_file(whole_run / "model" / "model.safetensors")
        average, raw = load_file(last / "ema.safetensors"), load_file(last / "model.safetensors")
        different = 0
        for name, value in exported.items():
            assert torch.equal(value, average[f"module.{name}"])
            different += not torch.equal(value, raw[name])
        assert different > 10

    def test_it_loads_by_the_auto_classes(self, whole_run: Path) -> None:
        folder = str(whole_run / "model")
        extractor = AutoFeatureExtractor.from_pretrained(folder)
        batch = extractor(["CCO"])
        assert AutoModel.from_pretrained(folder)(**batch).pooler_output.shape == (1, 32)
        assert AutoModelForPreTraining.from_pretrained(folder)(**batch).token_logits.shape[-1] == 128

    def test_only_the_last_checkpoints_are_kept(self, whole_run: Path) -> None:
        kept = sorted(path.name for path in (whole_run / "checkpoints").glob("checkpoint-*"))
        assert kept == ["checkpoint-22", "checkpoint-24"]

    def test_command(self, tmp_path: Path, library_dir: Path) -> None:
        config = tmp_path / "run.yaml"
        lines = ["scale: micro", f"data: {library_dir}", f"output_dir: {tmp_path / 'run'}", "max_steps: 2"]
        lines += ["samples_per_step: 4", "warmup_steps: 1", "learning_rate: 1e-4", "validation_molecules: 4"]
        lines += ["logging_steps: 1", "eval_steps: 2", "save_steps: 2", f"model: {json.dumps(TINY_MODEL)}"]
        config.write_text("\n".join(lines))
        result = run_command("pretrain", "--config", config)
        assert result.exit_code == 0, result.output
        assert (tmp_path / "run" / "model" / "model.safetensors").exists()


class TestSettings:
    @pytest.mark.parametrize(("temperature", "warned"), [(0.005, True), (1.0, False), (None, False)])
    def test_a_library_of_one_frequent_scaffold_is_told(
        self, library_dir: Path, tmp_path: Path, temperature: float | None, warned: bool
    ) -> None:
        console = Console(record=True, width=200, quiet=False, file=io.StringIO())
        settings = tiny_settings(
            str(library_dir), str(tmp_path), scaffold_temperature=temperature, max_steps=1, validation_molecules=0
        )
        pretrain(settings, console)
        assert ("raise scaffold_temperature" in console.export_text()) == warned

    def write(self, tmp_path: Path, text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    def test_the_defaults_are_the_papers(self) -> None:
        settings = PretrainSettings(data="library", output_dir="run")
        assert (settings.learning_rate, settings.warmup_steps, settings.max_steps) == (1e-4, 100_000, 810_000)
        assert (settings.beta1, settings.beta2, settings.weight_decay, settings.max_grad_norm) == (0.9, 0.99, 1e-4, 1.0)
        assert (settings.samples_per_step, settings.save_steps, settings.save_total_limit) == (1024, 1000, 10)
        noise = settings.noise_settings()
        assert (noise.mask_probability, noise.noise_angstrom, settings.scaffold_temperature) == (0.15, 0.2, 0.005)

    def test_numbers_that_yaml_reads_as_text(self, tmp_path: Path) -> None:
        settings = read_settings(
            PretrainSettings, self.write(tmp_path, "data: a\noutput_dir: b\nlearning_rate: 1e-3\nema_decay: 0.99")
        )
        assert (settings.learning_rate, settings.ema_decay) == (1e-3, 0.99)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("output_dir: b", "data"),
            ("data: a\noutput_dir: b\nlerning_rate: 1", "lerning_rate"),
            ("data: a\noutput_dir: b\nmax_steps: many", "many"),
            ("data: a\noutput_dir: b\nmax_steps: 1.5", "whole number"),
            ("data: a\noutput_dir: b\nscale: huge", "huge"),
            ("data: a\noutput_dir: b\nnoise: {sigma: 1}", "sigma"),
            ("data: a\noutput_dir: b\nsave_steps: 150", "multiple of logging_steps"),
            ("data: a\noutput_dir: b\nsave_total_limit: 1", "use 2 or more"),
            ("data: a\noutput_dir: b\ncompile: sometimes", "sometimes"),
            ("data: [", "YAML"),
            ("- a", "holds no settings"),
        ],
    )
    def test_what_cannot_be_used_is_named(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(SettingsError, match=message):
            read_settings(PretrainSettings, self.write(tmp_path, text))

    def test_a_model_that_does_not_fit_together(self, tmp_path: Path, library_dir: Path) -> None:
        with pytest.raises(ModelError, match="fit together"):
            pretrain(tiny_settings(str(library_dir), str(tmp_path), model={"hidden_size": "wide"}), QUIET)
