"""What engines need and is made once: jars from Maven Central, and the certificates of secure engines.

All of it is outside the repository, in WATERTOWER_ENGINES_CACHE (default ~/.cache/watertower/engines). A folder there appears whole, by one
rename, under a lock: two processes may start at once, and one that is killed half-way leaves nothing that looks done.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from watertower.testing.engines.engine import EngineFailed

MAVEN_S = 600
"""Seconds that Maven may take to fetch the jars of one engine (45 to 70 MB)."""

STORE_PASSWORD = "changeit"
"""Of the key store: the format wants one. It guards nothing, the key lies beside it."""

CERTIFICATE_DAYS = 3650
_OUTPUT_SHOWN_BYTES = 2_000
_FOREIGN_JARS = ("*-osx-*.jar", "*-windows-*.jar", "*-linux-riscv64.jar")

Dependency = tuple[str, str, str]
"""Group, artifact and version of a jar on Maven Central."""


def folder() -> Path:
    """The cache's folder, made if need be."""
    found = Path(os.environ.get("WATERTOWER_ENGINES_CACHE") or Path.home() / ".cache" / "watertower" / "engines").absolute()
    found.mkdir(parents=True, exist_ok=True)
    return found


def jars(name: str, dependencies: tuple[Dependency, ...]) -> Path:
    """The folder with the jars of an engine and of all that they need. Raises EngineFailed with Maven's words."""
    return once(name, lambda made: _fetch(made, dependencies))


def has_jars(name: str) -> bool:
    """Whether `jars` would find them without Maven."""
    return (folder() / name).is_dir()


def certificates(host: str = "") -> Path:
    """The folder with one authority, and one certificate for localhost, 127.0.0.1 to 127.0.0.5, and an address of this machine.

    ca.pem is what clients trust; server.pem (key, certificate, authority) is for Kafka, server.p12 for Cassandra.
    """
    return once(f"certificates-{host}" if host else "certificates", partial(_certify, host=host))


def once(name: str, make: Callable[[Path], None], root: Path | None = None) -> Path:
    """The folder `name` of `root` (the engines' one), made by `make` if it is not there yet; `make` is given a folder of another name."""
    root = root or folder()
    done = root / name
    if done.is_dir():
        return done
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.is_dir():  # another process made it while this one waited
            return done
        made = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            make(made)
            made.chmod(0o755)
            made.rename(done)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return done


def _fetch(made: Path, dependencies: tuple[Dependency, ...]) -> None:
    wanted = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>"
        for group, artifact, version in dependencies
    )
    with tempfile.TemporaryDirectory() as scratch:
        pom = Path(scratch) / "pom.xml"
        pom.write_text(
            '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion><groupId>local</groupId>'
            f"<artifactId>engine</artifactId><version>1</version><packaging>pom</packaging><dependencies>{wanted}</dependencies></project>"
        )
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={made}"]
        _run(["mvn", "-B", "-q", "-Dstyle.color=never", "-f", str(pom), *copy], MAVEN_S)
    for pattern in _FOREIGN_JARS:
        for jar in made.glob(pattern):
            jar.unlink()


def _certify(made: Path, host: str) -> None:
    def openssl(*arguments: str) -> None:
        _run(["openssl", *arguments], 60, made)

    days = str(CERTIFICATE_DAYS)
    openssl(
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        days,
        "-subj",
        "/CN=engines-test-ca",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    )
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    names = ["DNS:localhost", *(f"IP:127.0.0.{i}" for i in range(1, 6)), *([f"IP:{host}"] if host else [])]
    (made / "names").write_text(f"subjectAltName={','.join(names)}\n")
    authority = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    openssl("x509", "-req", "-in", "server.csr", *authority, "-days", days, "-extfile", "names", "-out", "server.crt")
    openssl("pkcs8", "-topk8", "-nocrypt", "-in", "server.key", "-out", "server.pk8")
    (made / "server.pem").write_text("".join((made / part).read_text() for part in ("server.pk8", "server.crt", "ca.pem")))
    contents = ["-in", "server.crt", "-inkey", "server.key", "-certfile", "ca.pem", "-name", "server"]
    openssl("pkcs12", "-export", *contents, "-passout", f"pass:{STORE_PASSWORD}", "-out", "server.p12")


def _run(command: list[str], seconds: float, where: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False)
    except FileNotFoundError as error:
        raise EngineFailed(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise EngineFailed(f"{command[0]} did not end within {seconds:g} s: {' '.join(command)}") from error
    if done.returncode:
        raise EngineFailed(f"{' '.join(command)}\nended with {done.returncode}:\n{(done.stdout + done.stderr)[-_OUTPUT_SHOWN_BYTES:]}")
