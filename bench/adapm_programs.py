"""AdaPM's own programs (github.com/alexrenz/AdaPM, ``apps``): data in their formats, command lines, output.

Each function of PROGRAMS runs one, as 2 processes of 1 worker thread, and returns the seconds of its epochs and the
quality after each.
"""

import lzma
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from intentpm.bench.tasks.knowledge_graph import load_knowledge_graph
from intentpm.bench.tasks.ratings import TEST, TRAIN, GeneratorSpec, generate_ratings
from intentpm.bench.tasks.word_similarity import read_similarity_sets

TIMEOUT_S = 900.0
KGE_EPOCHS, MF_EPOCHS = 4, 6
RANKED_TRIPLES = 1_000
MF_STEP = 0.1
MIN_COUNT = 5
"""Of words; as ours."""
KEYS_BEYOND_WORDS = 6
"""word2vec wants 5 to 10 more keys than two for each word."""
Measured = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True)
class Installed:
    """Where AdaPM is."""

    source: Path
    build: Path

    def run(self, program: str, *arguments: object) -> str:
        """What a program printed. Raises CalledProcessError, TimeoutExpired."""
        tracker = [sys.executable, str(self.source / "tracker" / "dmlc_local.py"), "-s", "2"]
        command = [*tracker, str(self.build / "apps" / program), "-t", "1", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        # The tracker leaves its programs behind when it is killed.
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            said = process.communicate(timeout=TIMEOUT_S)[0].decode(errors="replace")
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, said)
        return said


def knowledge_graph(adapm: Installed, data: Path, folder: Path) -> Measured:
    """ComplEx on FB15k-237, dim 128, 10 negatives: filtered MRR of the first validation triples."""
    graph = load_knowledge_graph(data / "fb15k237")
    for name, triples in (("train", graph.train), ("valid", graph.valid), ("test", graph.test)):
        np.savetxt(folder / f"{name}.del", triples, fmt="%d", delimiter="\t")
    said = adapm.run(
        "knowledge_graph_embeddings", "--dataset", f"{folder}/", "--num_entities", graph.entities, "--num_relations",
        graph.relations, "--embed_dim", 128, "--neg_ratio", 10, "--num_epochs", KGE_EPOCHS, "--eval_freq", 1,
        "--eval_truncate_tr", 1, "--eval_truncate_va", RANKED_TRIPLES,
    )  # fmt: skip
    seconds = _numbers(r"All workers finished epoch \d+ \(epoch: ([\d.]+)", said)
    return seconds, [percent / 100 for percent in _numbers(r"-VA  MRR_CURR +([\d.]+)", said)]


def matrix(adapm: Installed, data: Path, folder: Path) -> Measured:
    """Rank 32 on the ratings that ``intentpm train mf --generate ''`` makes: RMSE of the test ratings.

    Column by column, as in AdaPM's paper; no step size was found that does better in as many epochs.
    """
    ratings = generate_ratings(GeneratorSpec())
    mean = ratings.rating[ratings.split == TRAIN].mean()
    for name, split in (("train", TRAIN), ("test", TEST)):
        of_split = np.flatnonzero(ratings.split == split)
        places = of_split[np.lexsort((ratings.user[of_split], ratings.item[of_split]))]
        rows = np.stack([ratings.user[places] + 1, ratings.item[places] + 1, ratings.rating[places] - mean], axis=1)
        header = f"%%MatrixMarket matrix coordinate real general\n%\n{ratings.users} {ratings.items} {len(rows)}"
        np.savetxt(folder / f"{name}.mmc", rows, fmt="%d %d %.6f", header=header, comments="")
    said = adapm.run(
        "matrix_factorization", "--dataset", f"{folder}/", "-r", 32, "--num_rows", ratings.users, "--num_cols",
        ratings.items, "--epochs", MF_EPOCHS, "--eps", MF_STEP, "--algorithm", "columnwise", "--lambda", 0.05,
        "--bold_driver", 0,
    )  # fmt: skip
    seconds = _numbers(r"Worker 0 finished epoch \d+ \(([\d.]+)s", said)
    return seconds, [loss**0.5 for loss in _numbers(r"\(Ep\.[1-9]\d*\) Test loss: +([\d.]+)", said)]


def words(adapm: Installed, data: Path, folder: Path) -> Measured:
    """word2vec on the Wikipedia text, dim 100, window 5, 5 negatives, one epoch: WS-353."""
    text = folder / "train.txt"
    with lzma.open(data / "wiki_text" / "train.txt.xz", "rb") as packed:
        text.write_bytes(packed.read())
    vectors = folder / "vectors"
    counts = Counter(text.read_bytes().split())
    num_words = 1 + sum(count >= MIN_COUNT for count in counts.values())  # and the end of a sentence
    said = adapm.run(
        "word2vec", "--input_file", text, "--output_file", vectors, "--num_keys",
        2 * num_words + KEYS_BEYOND_WORDS, "--embed_dim", 100,
        "--window", 5, "--negative", 5, "--num_iterations", 1, "--min_count", MIN_COUNT, "--write_results", 1,
    )  # fmt: skip
    names, rows = _read_vectors(Path(f"{vectors}.epoch.1"))
    pairs = read_similarity_sets(data / "wordsim", {name: key for key, name in enumerate(names)})["ws353"]
    return _numbers(r"All workers finished epoch \d+ \(epoch: ([\d.]+)", said), [
        pairs.correlation(rows, np.arange(len(rows)))
    ]


def _read_vectors(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """The words and their vectors, float32 [words, dim], of a file in word2vec's binary format."""
    content = path.read_bytes()
    at = content.index(b"\n") + 1
    count, dim = map(int, content[:at].split())
    names, rows = [], np.empty((count, dim), np.float32)
    for number in range(count):
        end = content.index(b" ", at)
        names.append(content[at:end].decode(errors="replace"))
        rows[number] = np.frombuffer(content, np.float32, dim, end + 1)
        at = end + 1 + 4 * dim + 1
    return names, rows


def _numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


PROGRAMS: dict[str, Callable[[Installed, Path, Path], Measured]] = {
    "kge": knowledge_graph, "mf": matrix, "wv": words,
}  # fmt: skip
