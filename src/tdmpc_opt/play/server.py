"""`play`: export what was asked for, and serve the page on this machine until it is stopped."""

import gzip
import mimetypes
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EACCES, EADDRINUSE
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tdmpc_opt.configs.measure import PlayConfig
from tdmpc_opt.errors import InputError, MissingDependencyError
from tdmpc_opt.play.agents import LIST, write_agents

HOST = "127.0.0.1"
BUNDLE = Path(__file__).parent / "static"
"""The built page; `make web` writes it. Files ending in .gz are served unpacked."""

_TYPES = mimetypes.MimeTypes()
"""Python's own table: the system's may lack some, or have others."""
# The page fetches from this server alone: nothing can be sent elsewhere.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' 'wasm-unsafe-eval'; "
    "worker-src 'self' blob:; img-src 'self' data:; base-uri 'self'; form-action 'none'"
)


class PlayServer(ThreadingHTTPServer):
    """Serves the files of folders, earlier folders first, at a port of 127.0.0.1.

    Raises:
        InputError: A port that is taken, forbidden or none.
        MissingDependencyError: No folder contains the built page.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, folders: Sequence[Path], port: int, handler: "type[FileHandler] | None" = None
    ) -> None:
        self.files = {path: file for folder in folders[::-1] for path, file in _files(folder)}
        if "/index.html" not in self.files:
            raise MissingDependencyError(
                "this installation lacks the page's files; in a checkout run: make web"
            )
        try:
            super().__init__((HOST, port), handler or FileHandler)
        except OSError as error:
            if error.errno not in (EADDRINUSE, EACCES):
                raise
            why = "taken" if error.errno == EADDRINUSE else "not allowed to you"
            raise InputError(
                f"port {port} is {why}; choose another with --port (0 takes any free one)"
            ) from error
        except OverflowError:
            raise InputError(f"a port is a number from 0 to 65535, got {port}") from None

    @property
    def address(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_address[1]}/"


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield f"/{file.relative_to(folder).as_posix().removesuffix('.gz')}", file


class FileHandler(BaseHTTPRequestHandler):
    """Answers with the server's files."""

    server: PlayServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a file."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with a file's headers."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet: the terminal shows what a user asked for."""

    def refused(self) -> bool:
        """Refuse requests to other names: a foreign site could read through one of its own."""
        if self.headers.get("Host", "").rpartition(":")[0] in (HOST, "localhost"):
            return False
        self.send_error(HTTPStatus.FORBIDDEN, "open the page as localhost")
        return True

    def _answer(self, *, with_body: bool) -> None:
        if self.refused():
            return
        path = unquote(urlsplit(self.path).path)
        path = "/index.html" if path == "/" else path
        file = self.server.files.get(path)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = file.read_bytes()
        packed = file.suffix == ".gz"
        if packed and "gzip" not in self.headers.get("Accept-Encoding", ""):
            content, packed = gzip.decompress(content), False
        kind = _TYPES.guess_type(path)[0] or "application/octet-stream"
        charset = "; charset=utf-8" if kind.startswith("text/") else ""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind + charset)
        self.send_header("Content-Length", str(len(content)))
        if packed:
            self.send_header("Content-Encoding", "gzip")
        # Built files carry a hash of their content in their names; others may change.
        lasting = path.startswith("/assets/")
        self.send_header("Cache-Control", "max-age=31536000" if lasting else "no-cache")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def page_server(
    config: PlayConfig, started: Callable[[str], None] = lambda _: None, bundle: Path = BUNDLE
) -> Iterator[PlayServer]:
    """Make the server of the page, ready to `serve_forever`.

    Raises:
        CheckpointError: A file that is missing, damaged, foreign or unsafe.
        InputError: A port that cannot be used, or an agent without a task of MT30.
        MissingDependencyError: No built page, or no library to export agents.
    """
    with tempfile.TemporaryDirectory(prefix="tdmpc-opt-play-") as folder:
        site = Path(folder)
        with PlayServer([site, bundle], config.port):
            pass  # a port that is taken is known before anything is exported
        if config.checkpoints:
            (site / LIST).write_bytes(gzip.decompress((bundle / f"{LIST}.gz").read_bytes()))
            write_agents(config.checkpoints, site, started)
        with PlayServer([site, bundle], config.port) as server:
            yield server
