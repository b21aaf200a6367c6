"""What our trainers have in common: a choice of the loop that trains them."""

import time
from typing import Any, Literal

from sbi.inference.trainers._contracts import TrainConfig
from tqdm.auto import tqdm

from sbi_boed_plugin._fit import AveragedSchedule, Batches, Fit
from sbi_boed_plugin._sbi_compat import KeepsTracker

__all__ = ["Schedule", "ScheduledTrainer"]

Schedule = Literal["constant", "averaged"] | AveragedSchedule

# Rows that are validated at a time.
_VALIDATION_ROWS = 1_000
# Arguments of sbi's loop that a schedule has its own of, with sbi's defaults.
_OF_SBIS_LOOP = {
    "learning_rate": (5e-4, "pass schedule=AveragedSchedule(learning_rate=...)"),
    "stop_after_epochs": (20, "pass schedule=AveragedSchedule(patience=...)"),
    "dataloader_kwargs": (None, "its rows are in memory, and need no loaders"),
}


class ScheduledTrainer(KeepsTracker):
    """A trainer of sbi that trains by its loop or by a schedule."""

    _neural_net: Any
    _schedule: AveragedSchedule | None = None
    _fit: Fit | None = None

    def _choose_schedule(self, schedule: Any, given: dict[str, Any]) -> None:
        """Take the schedule of a call of `train`, or raise if arguments contradict."""
        if schedule == "averaged":
            schedule = AveragedSchedule()
        elif schedule == "constant":
            schedule = None
        elif not isinstance(schedule, AveragedSchedule):
            raise ValueError(
                f"schedule={schedule!r} must be 'constant', which is sbi's loop, "
                "'averaged', or an AveragedSchedule(...)."
            )
        for name, (default, remedy) in _OF_SBIS_LOOP.items():
            if schedule is not None and given[name] != default:
                raise ValueError(
                    f"{name}={given[name]!r} belongs to sbi's loop, and schedule="
                    f"'averaged' does without: {remedy}."
                )
        before = None if self._fit is None else self._fit.schedule
        if given["resume_training"] and schedule != before:
            raise ValueError(
                f"resume_training=True with schedule={schedule or 'constant'}, but the "
                f"training to resume had {before or 'constant'}. Pass the same value "
                "or start a new training."
            )
        self._schedule = schedule

    def _report_convergence_at_end(self, epoch: int, max_num_epochs: int) -> None:
        """Say how a training ended: a warning always, all else beside progress."""
        trainer: Any = self
        if trainer._show_progress_bars or epoch > max_num_epochs:
            super()._report_convergence_at_end(epoch, max_num_epochs)  # type: ignore

    def _batch_size(self, most: int) -> int:
        """Return the size of batches of the schedule."""
        assert self._schedule is not None
        trainer: Any = self
        return self._schedule.batch_size(most, len(trainer.train_indices))

    def _run_training_loop(
        self,
        train_loader: Any,
        val_loader: Any,
        train_config: TrainConfig,
        loss_args: Any = None,
        summarization_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Train by sbi's loop, or by the schedule on the rows of its loaders."""
        trainer: Any = self
        given = (train_loader, val_loader, train_config, loss_args)
        if self._schedule is None:
            self._fit = None
            return super()._run_training_loop(*given, summarization_kwargs)  # type: ignore
        network = self._neural_net.to(trainer._device)
        if not train_config.resume_training:
            self._fit = Fit(network, self._schedule, train_config.clip_max_norm)
        assert self._fit is not None
        fit, summary, most = self._fit, trainer._summary, train_config.max_num_epochs
        trainer.optimizer = fit.optimizer
        rows = train_loader.dataset.tensors
        size = self._batch_size(train_loader.batch_size)
        training = Batches(rows, trainer.train_indices, size)
        validation = Batches(rows, trainer.val_indices, _VALIDATION_ROWS, shuffle=False)
        of_loss = {} if loss_args is None else {"loss_args": loss_args}
        bar = tqdm(
            desc="Training neural network",
            unit=" epochs",
            disable=not trainer._show_progress_bars,
        )

        def after_epoch(training_loss: float, validation_loss: float) -> None:
            nonlocal started
            losses = training_loss, validation_loss
            trainer._summarize_epoch(*losses, started, summarization_kwargs or {})
            started = time.time()
            bar.set_postfix(loss=f"{validation_loss:.4f}", rate=f"{fit.rate:.1e}")
            bar.update()

        started = time.time()
        try:
            with bar:
                fit.run(
                    training,
                    lambda batch: trainer._get_losses(batch=batch, **of_loss),
                    lambda: trainer._validate_epoch(validation, loss_args),
                    max_num_epochs=most,
                    after_epoch=after_epoch,
                )
        finally:
            trainer.epoch, trainer._val_loss = fit.epoch, fit.best_loss
            trainer._best_val_loss = fit.best_loss
        if not fit.finished:
            # sbi's warning, whose loop counts one epoch more.
            trainer._report_convergence_at_end(most + 1, most)
        summary["epochs_trained"].append(fit.epoch)
        summary["best_validation_loss"].append(fit.best_loss)
        trainer._summarize(round_=trainer._round)
        if train_config.show_train_summary:
            print(trainer._describe_round(trainer._round, summary))
        return network
