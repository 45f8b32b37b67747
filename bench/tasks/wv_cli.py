"""``intentpm train wv``."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from intentpm.bench.tasks.corpus import CorpusSpec, generate_corpus, load_corpus
from intentpm.bench.tasks.progress import EPOCH, TRAFFIC, Column
from intentpm.bench.tasks.task_options import check_source, schedule_options, source_options
from intentpm.bench.tasks.training import Job, Training, job_options, train
from intentpm.bench.tasks.wv import MAX_WINDOW, MEASURES, WordVectors, WvOptions, WvRow

DEFAULTS = WvOptions()
TITLES = {"ws353": "WS-353", "simlex": "SimLex", "topics": "topics"}


@click.command()
@source_options("Text, or a folder with train.txt: an article per line.",
                "Generate text instead: words=..,tokens=..,topics=..")  # fmt: skip
@click.option("--similarity", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder of similarity sets [wordsim, beside the data's folder].")  # fmt: skip
@click.option("--min-count", type=click.IntRange(1), default=5, show_default=True,
              help="Words that occur less often are left out.")  # fmt: skip
@click.option("--dim", type=click.IntRange(1), default=DEFAULTS.dim, show_default=True, help="Length of a vector.")
@click.option("--window", type=click.IntRange(1, MAX_WINDOW), default=DEFAULTS.window, show_default=True,
              help="Most context words on either side.")  # fmt: skip
@click.option("--negatives", type=click.IntRange(1), default=DEFAULTS.negatives, show_default=True,
              help="Sampled words per centre word.")  # fmt: skip
@click.option("--subsample", type=click.FloatRange(0), default=DEFAULTS.subsample, show_default=True,
              help="Words more frequent than this share of the text are thinned out; 0: none.")  # fmt: skip
@schedule_options(DEFAULTS, "Centre words per batch.")
@job_options
def wv(
    job: Job, data: Path | None, generate: str | None, similarity: Path | None, min_count: int, **chosen: Any
) -> None:
    """Word vectors: skip-gram with negative sampling."""
    check_source(data, generate)
    spec = CorpusSpec.parse(generate or "")
    job.leave_to_ranks(lambda: data is None or load_corpus(data, min_count, similarity))
    options = WvOptions(**chosen)
    corpus = load_corpus(data, min_count, similarity) if data else generate_corpus(spec, options.seed)
    sizes = {"words": corpus.words, "tokens": len(corpus.tokens)}
    pairs = {name: len(found.score) for name, found in corpus.similarity.items()}
    measures = [name for name in MEASURES if name in corpus.similarity]
    training = Training(
        name="wv",
        title="Word vectors",
        data=f"{corpus.source}: {corpus.words:,} words, {len(corpus.tokens):,} tokens",
        config={"data": corpus.source, **sizes, "pairs": pairs, **asdict(options)},
        epochs=options.epochs,
        columns=(EPOCH, Column("train loss", "loss", ".4f"),
                 *(Column(TITLES[name], name, ".4f") for name in measures), *TRAFFIC),
        run=lambda pm: WordVectors(pm, corpus, options, job.checkpoints_of("wv")).run(),
        quality=lambda rows: _quality(rows, pairs),
        notes=corpus.notes,
    )  # fmt: skip
    train(training, job)


def _quality(rows: Sequence[WvRow], pairs: dict[str, int]) -> list[tuple[str, str]]:
    return [
        (f"{TITLES[name]}, Spearman", f"{getattr(rows[-1], name):.4f} ({count:,} pairs)")
        for name, count in pairs.items()
    ]
