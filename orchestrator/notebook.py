"""Studies in notebooks: tables as pandas, pictures as matplotlib figures, trained networks to use.

    import orchestrator as ab

    study = ab.load("quickstart")
    study.run()
    study.table()
    study.plot_pr()

Everything is read from the stage store; only :meth:`NotebookStudy.run` trains.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stderr
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.reporting.results import StudyResults, TrialResult
from retrieval.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from orchestrator.reporting.figures import TradeOff
    from orchestrator.reporting.leaderboard import Leaderboard
    from orchestrator.serving.trained import SideName, TrainedTrial
    from orchestrator.session import Session

    Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


def load(
    study: str | os.PathLike[str],
    *,
    home: str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> NotebookStudy:
    """Open a study, whether it was run or not; trains nothing.

    Args:
        study: a YAML file, a shipped preset, or the name of a study already run.
        home: the folder of everything that runs write; ASYMBENCH_HOME by default.
        overrides: ``key=value`` settings, as of ``--set``.

    Raises:
        InputError: the study cannot be found or is wrong.
    """
    from orchestrator.command_line import open_study

    where = None if home is None else Path(home).expanduser().absolute()
    return NotebookStudy(open_study(os.fspath(study), tuple(overrides), ran=True, home=where))


class NotebookStudy:
    """A study and what it has come to.

    Args:
        session: the study, planned.

    Attributes:
        session: likewise.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    @property
    def name(self) -> str:
        """The study's name."""
        return self.session.plan.study

    @cached_property
    def results(self) -> StudyResults:
        """What the store has; read once, and again after :meth:`run` and :meth:`refresh`."""
        from orchestrator.reporting.formats import session_results

        return session_results(self.session)

    @cached_property
    def leaderboards(self) -> tuple[Leaderboard, ...]:
        """The tables, with significance and published numbers."""
        from orchestrator.reporting.leaderboard import leaderboards

        return leaderboards(self.results)

    def refresh(self) -> None:
        """Read the store anew: another process may be at work on the study."""
        self.session.refresh()
        for name in ("results", "leaderboards"):
            self.__dict__.pop(name, None)

    def run(
        self, *, executor: Literal["ray", "inline"] = "ray", quiet: bool = False
    ) -> NotebookStudy:
        """Run what is missing; return the study.

        Args:
            executor: "ray" uses all of the machine; "inline" works in this process, one stage
                after another.
            quiet: whether to say nothing of what is under way.

        Raises:
            InputError: the study asks for more than there is.
            KeyboardInterrupt: interrupted; what is finished is kept.
        """
        from orchestrator.session import Place, run

        if executor not in ("ray", "inline"):
            raise UnknownNameError("executor", executor, ("ray", "inline"), key="executor")
        with redirect_stderr(io.StringIO()) if quiet else nullcontext():
            run(self.session, Place(executor=executor))
        self.refresh()
        return self

    # ---- tables --------------------------------------------------------------------------

    def table(self, score: str = "map") -> pd.DataFrame:
        """Return the leaderboard: means over seeds, by pair and method, datasets and bits across.

        Args:
            score: "map", or another that the study has tables of.

        Raises:
            UnknownNameError: the study has no tables of the score.
            InputError: it is a search that has scored nothing on the test queries yet.
        """
        import pandas as pd

        boards = [board for board in self.leaderboards if board.score == score]
        if not self.leaderboards:
            raise InputError(
                "has chosen nothing yet that is scored on the test queries",
                key="study",
                value=self.name,
            )
        if not boards:
            known = dict.fromkeys(board.score for board in self.leaderboards)
            raise UnknownNameError("score", score, list(known), key="score")
        frames = []
        for board in boards:
            heads = [(c.dataset, c.protocol, c.at, c.bits) for c in board.columns]
            columns = pd.MultiIndex.from_tuples(heads, names=["dataset", "protocol", "at", "bits"])
            rows = [(board.pair, line.method) for line in board.lines]
            index = pd.MultiIndex.from_tuples(rows, names=["pair", "method"])
            cells = [[None if c is None else c.mean for c in line.cells] for line in board.lines]
            frames.append(pd.DataFrame(cells, index=index, columns=columns, dtype=float))
        return pd.concat(frames)

    def trials(self) -> pd.DataFrame:
        """Return one row a trial: coordinates, scores, validation mAP, sizes, seconds by stage."""
        import pandas as pd

        from orchestrator.reporting.rows import trial_rows

        return pd.DataFrame(trial_rows(self.results, times=True))

    def compare(self, to: str | None = None) -> pd.DataFrame:
        """Return paired tests over the test queries, one row a method and column of the tables.

        Args:
            to: the method that the others are compared with; the best of each column by default.

        Raises:
            InputError: the study has no such method, or several settings of it.
        """
        import pandas as pd

        from orchestrator.comparison import compare_study

        found = compare_study(self.session.plan, self.session.store, to=to)
        return pd.DataFrame([row for one in found for row in one.rows()])

    def curves(self) -> pd.DataFrame:
        """Return one row an epoch of each query network: validation mAP, losses by term."""
        import pandas as pd

        rows = [
            {
                "method": one.trial.method,
                "setting": one.trial.setting,
                "dataset": one.trial.dataset,
                "pair": one.trial.pair,
                "bits": one.trial.bits,
                "seed": one.trial.seed,
                "trial": one.trial.id,
                **epoch,
                "epoch": int(epoch["epoch"]) + 1,
            }
            for one in self.results.trials
            for epoch in one.history
        ]
        return pd.DataFrame(rows)

    # ---- pictures ------------------------------------------------------------------------

    def plot_pr(self) -> Figure:
        """Return precision against recall over Hamming radii, means over seeds."""
        from orchestrator.reporting.figures import pr_figure

        return pr_figure(self.results)

    def plot_precision_at_k(self) -> Figure:
        """Return precision among the top K, means over seeds."""
        from orchestrator.reporting.figures import precision_figure

        return precision_figure(self.results)

    def plot_map_by_epoch(self) -> Figure:
        """Return the query networks' validation mAP by epoch, means over seeds."""
        from orchestrator.reporting.figures import epochs_figure

        return epochs_figure(self.results)

    def plot_tradeoff(self, x: TradeOff = "flops") -> Figure:
        """Return mAP against what a query or the gallery costs.

        Args:
            x: "flops" or "parameters" of the query network, "bytes" of a gallery image's code, or
                "latency" of the query network as `asymbench efficiency` measured it in this home.

        Raises:
            InputError: it is none of these, or nothing is measured.
        """
        from orchestrator.reporting.efficiency import efficiency_points
        from orchestrator.reporting.figures import tradeoff_figure

        points = efficiency_points(self.results, self.leaderboards, self.session.home)
        return tradeoff_figure(points, x)

    def plot_sensitivity(self) -> Figure:
        """Return validation mAP over each parameter that was searched.

        Raises:
            InputError: the study is no search, or has no curves.
        """
        from orchestrator.reporting.figures import shown

        if self.session.search is None:
            raise InputError(
                "is a benchmark; sensitivity and tuning studies have such curves",
                key="study",
                value=self.name,
            )
        from orchestrator.search_pictures import sensitivity_figure
        from orchestrator.search_report import search_results

        figure = sensitivity_figure(search_results(self.session))
        if figure is None:
            raise InputError("has measured no curve yet", key="study", value=self.name)
        return shown(figure)

    # ---- one trial -----------------------------------------------------------------------

    def trial(self, text: str) -> NotebookTrial:
        """Return one trial.

        Args:
            text: its id, the first four or more digits of it, its label, or words of that.

        Raises:
            InputError: no trial has this name, or several have.
        """
        from orchestrator.naming import trial_of

        found = trial_of(self.session, text)
        (result,) = (one for one in self.results.trials if one.trial.id == found.id)
        return NotebookTrial(self.session, result)

    def __repr__(self) -> str:
        done = sum(one.status == "done" for one in self.results.trials)
        return f"<study {self.name}: {done} of {len(self.results.trials)} trials done>"

    def _repr_html_(self) -> str:
        from orchestrator.reporting.notebook_html import boards_html

        return boards_html(repr(self), self.leaderboards)


def _checked(images: Images) -> Images:
    """Return images that are ones.

    Raises:
        InputError: something is not (H, W, 3) uint8. Other numbers would be cut to whole ones.
    """
    for place, image in enumerate(images):
        shape: tuple[int, ...] = getattr(image, "shape", ())
        kind = getattr(image, "dtype", type(image).__name__)
        if len(shape) != 3 or shape[2] != 3 or 0 in shape or kind != "uint8":
            raise InputError(
                "must be arrays (H, W, 3) of uint8, or one array (n, H, W, 3)",
                key="images",
                value=f"{kind} {shape}" if shape else kind,
                where=f"image {place}",
            )
    return images


class NotebookTrial:
    """One trial of a study.

    Args:
        session: the study.
        result: what the store has of the trial.

    Attributes:
        result: likewise.
    """

    def __init__(self, session: Session, result: TrialResult) -> None:
        self._session = session
        self.result = result

    @property
    def label(self) -> str:
        """A readable name: ``csch · mnv3s-rn50 · 32 bit · cifar10 · s0``."""
        return self.result.trial.label

    @property
    def scores(self) -> dict[str, Any]:
        """Scores of the test queries by name; empty where it is not done."""
        return dict(self.result.scores)

    @cached_property
    def trained(self) -> TrainedTrial:
        """Its trained networks.

        Raises:
            InputError: it is not finished.
        """
        from orchestrator.serving.trained import open_trial

        return open_trial(self._session, self.result.trial.id)

    def encode(self, images: Images, side: SideName = "query") -> NDArray[np.uint8]:
        """Return codes of images.

        Args:
            images: (H, W, 3) uint8 each, of any sizes, or one array (n, H, W, 3).
            side: whose network encodes them.

        Returns:
            (n, ceil(B / 8)) uint8, packed.

        Raises:
            InputError: the trial is not finished, there is no such side, or something is no image.
        """
        encoder = self.trained.side(side)
        return encoder.encode(_checked(images))

    def search(self, images: Images, k: int = 10) -> pd.DataFrame:
        """Return what is nearest to images in the gallery that the trial was scored with.

        Args:
            images: as of :meth:`encode`; the query network encodes them.
            k: how many for each.

        Returns:
            One row a match: ``query`` (number of the image), ``rank`` from 1, ``distance`` in
            bits, ``name``, ``classes`` and ``row`` of the gallery image.

        Raises:
            InputError: the trial is not finished, or ``k`` is not positive.
        """
        import pandas as pd

        from orchestrator.serving.gallery import study_gallery
        from orchestrator.serving.searching import index_of, matches

        gallery = study_gallery(self.trained)
        found = index_of(gallery).search(self.encode(images), k)
        rows = [
            {"query": number, **match.to_json()}
            for number, hits in enumerate(found)
            for match in matches(gallery, hits)
        ]
        columns = ["query", "rank", "distance", "name", "classes", "row"]
        return pd.DataFrame(rows, columns=columns)

    def images(self, side: SideName = "query", rows: Sequence[int] = (0,)) -> list[Any]:
        """Return images of the dataset as they are stored: test queries, or the gallery's.

        Args:
            side: "query" or "gallery".
            rows: numbers within the split.

        Returns:
            (S, S, 3) uint8 each.

        Raises:
            InputError: there is no such side or row.
        """
        from orchestrator.serving.gallery import dataset_image
        from orchestrator.serving.trained import SIDES

        if side not in SIDES:
            raise UnknownNameError("side", side, SIDES, key="side")
        split = self.trained.rows(side)
        for row in rows:
            if not 0 <= row < len(split):
                last = len(split) - 1
                raise InputError(f"rows of this split are 0 to {last}", key="rows", value=row)
        return [dataset_image(self.trained, int(split[row])) for row in rows]

    def __repr__(self) -> str:
        return f"<trial {self.label}: {self.result.status}>"
