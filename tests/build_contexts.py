"""Build contexts of different kinds, as real projects have them: Dockerfiles that need no network.

A context is a table: path → text, (text, mode), a link's target behind ``->``, or bytes. All start from ``localhost/base:1``.
"""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

File = str | bytes | tuple[str, int]
Context = dict[str, File]


def archive(*, packed: bool) -> bytes:
    """An archive with owners, modes, links and a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz" if packed else "w") as tar:
        for name, kind, mode, owner, link in (
            ("release", tarfile.DIRTYPE, 0o750, 7, ""), ("release/run", tarfile.REGTYPE, 0o4755, 8, ""),
            ("release/link", tarfile.SYMTYPE, 0o777, 0, "run"), ("release/hard", tarfile.LNKTYPE, 0o4755, 8, "release/run"),
            ("./lib/module", tarfile.REGTYPE, 0o644, 0, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.linkname, info.mtime = kind, mode, owner, owner, link, 1_000_000_000
            info.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"data") if info.size else None)
    return out.getvalue()


SITE: Context = {
    "Dockerfile": """
# A static site behind a small web server.
FROM localhost/base:1
LABEL org.opencontainers.image.title="site" maintainer="web@example.org"
COPY html/ /srv/www/
COPY httpd.conf /etc/
EXPOSE 80 8443/tcp
STOPSIGNAL SIGQUIT
CMD ["httpd", "-f", "-c", "/etc/httpd.conf"]
""",
    "html/index.html": "<h1>hi</h1>\n",
    "html/css/site.css": "body {}\n",
    "httpd.conf": "H:/srv/www\n",
}

APPLICATION: Context = {
    "Dockerfile": """
# An application with a user of its own, as web frameworks are packed.
ARG VERSION=1
FROM localhost/base:${VERSION} AS runtime
ENV PYTHONUNBUFFERED=1 \\
    APP_HOME=/opt/app
WORKDIR ${APP_HOME}
RUN echo "web:x:3000:3000::$APP_HOME:/bin/sh" >> /etc/passwd && echo web:x:3000: >> /etc/group
COPY requirements.txt ./
RUN while read -r name; do mkdir -p "lib/$name" && echo "$name" > "lib/$name/installed"; done < requirements.txt
COPY --chown=web:web . .
RUN chown -R web:web lib
USER web
RUN id -u > lib/whoami && touch lib/.cache
ENTRYPOINT ["/bin/sh", "/opt/app/start.sh"]
CMD ["--workers", "2"]
""",
    "requirements.txt": "flask\ngunicorn\n",
    "start.sh": ("#!/bin/sh\necho start\n", 0o755),
    "app/main.py": "print(1)\n",
    "app/old.pyc": "x",
    "app/__pycache__/main.pyc": "x",
    "tests/__pycache__/t.pyc": "x",
    "tests/test_main.py": "\n",
    ".dockerignore": "# not for the image\n**/*.pyc\n**/__pycache__\n.git\nDockerfile\n",
}

COMPILED: Context = {
    "Dockerfile": """
# Compile in one image, keep the result in an empty one.
FROM localhost/base:1 AS build
WORKDIR /src
COPY src/ .
RUN mkdir -p /out/bin /out/etc && cat main.c > /out/bin/program && chmod 4755 /out/bin/program \\
 && ln -s program /out/bin/alias && ln /out/bin/program /out/bin/again && echo conf > /out/etc/program.conf

FROM build AS test
RUN test -x /out/bin/program && touch /tested

FROM scratch
COPY --from=build /out/ /
COPY --from=build --chown=1000:1000 /src/data /data
COPY --from=0 /src/main.c /usr/share/program/
USER 1000
ENTRYPOINT ["/bin/program"]
""",
    "src/main.c": "int main(void) { return 0; }\n",
    "src/data/a.bin": "a",
    "src/data/deep/er/b.bin": "b",
}

DATABASE: Context = {
    "Dockerfile": """
# A database server: volume, entrypoint script, user by name.
FROM localhost/base:1
ENV PGDATA=/var/lib/db/data PATH=$PATH:/usr/lib/db/bin
RUN set -eux; \\
    echo db:x:999:999::/var/lib/db:/bin/sh >> /etc/passwd; \\
    echo db:x:999: >> /etc/group; \\
    mkdir -p "$PGDATA" /srv/db; \\
    # what lies between belongs to it as well
    chown -R db:db /var/lib/db /srv/db; \\

    chmod 1777 /srv/db; \\
    chmod 0700 "$PGDATA"
COPY --chmod=755 docker-entrypoint.sh /usr/local/bin/
RUN ln -s usr/local/bin/docker-entrypoint.sh /
VOLUME /var/lib/db/data
EXPOSE 5432
USER db
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["db"]
""",
    "docker-entrypoint.sh": '#!/bin/sh\nexec "$@"\n',
}

ARCHIVES: Context = {
    "Dockerfile": """
# ADD unpacks local archives, and copies everything else.
FROM localhost/base:1
ADD release.tar.gz /opt/release/
ADD plain.tar /opt/plain
ADD not-an-archive.tar.gz /opt/files/
ADD one.txt two.txt /opt/files/
COPY plain.tar /opt/kept.tar
""",
    "release.tar.gz": archive(packed=True),
    "plain.tar": archive(packed=False),
    "not-an-archive.tar.gz": "no\n",
    "one.txt": "1\n",
    "two.txt": "2\n",
}

_MANY = """\
tempa tempab temp1/x one/temporary.txt one/two/temp.txt one/two/three/temp.txt src/a1.c src/b1.c src/c1.c src/x.h
src/xy.h src/build.log src/keep.log deep/er/run.log docs/README.md docs/other.md docs/sub/x.md secret nested/secret
.git/config node_modules/left/pad.js lib/node_modules/x.js
"""

IGNORED: Context = {
    "Dockerfile": """
# Which files of the context count.
FROM localhost/base:1
WORKDIR /build
COPY . .
COPY docs/*.md /docs/
COPY src/[ab]*.c src/?.h /sources/
""",
    ".dockerignore": """
# comment
*/temp*
*/*/temp*
temp?
**/*.log
!src/keep.log
docs
!docs/README.md
/secret
.git
node_modules/
""",
    **{name: f"{name}\n" for name in _MANY.split()},
}

VARIABLES: Context = {
    "Dockerfile": """
# Arguments and variables, in every place that they are replaced in.
ARG BASE=base
ARG TAG=1
ARG GLOBAL=outside
FROM localhost/${BASE}:${TAG} AS first
ARG GLOBAL
ARG NAME=world
ARG UNSET
ARG WITH_DEFAULT=${NAME}-suffix
ENV GREETING="hello ${NAME}" PLAIN=$NAME \\
    FALLBACK=${UNSET:-none} ALTERNATIVE=${NAME:+there} LITERAL='$NAME' ESCAPED=\\$NAME
ENV legacy value with blanks
LABEL greeting="$GREETING" "quoted key"="x y" path=/a/${NAME}/b
WORKDIR /srv/${NAME}
WORKDIR sub
RUN echo "$GREETING|$NAME|$GLOBAL|$WITH_DEFAULT|$FALLBACK|$ALTERNATIVE|$LITERAL|$ESCAPED|$legacy|$(pwd)" > /result
COPY ${NAME}.txt ./copy-of-${NAME}
EXPOSE ${PORT:-8080} 9000/udp
USER ${UNSET:-app}
VOLUME ["/data/${NAME}", "/more"]
VOLUME /a /b
STOPSIGNAL ${UNSET:-SIGUSR1}
CMD echo $NAME
""",
    "world.txt": "w\n",
}

CHANGES: Context = {
    "Dockerfile": """
# What layers must be able to say: gone, replaced, opaque, linked, special modes.
FROM localhost/base:1
RUN mkdir -p /d/a/b /d/c /e/f && echo 1 > /d/a/b/1 && echo 2 > /d/c/2 && echo 3 > /e/f/3 && ln -s a /d/link \\
 && echo x > /x && ln /x /y && mkfifo /fifo && touch -d '2001-02-03 04:05:06' /old && dd if=/dev/zero of=/holes bs=1 count=1 \\
 seek=1000000 2> /dev/null
RUN rm -rf /d/a && rm /e/f/3 && mkdir -p /d/a && echo new > /d/a/new
RUN rm -rf /e && echo file > /e && rm /d/link && mkdir /d/link && echo in > /d/link/in
RUN rm -rf /d/c && ln -s a /d/c && rm /y && echo more >> /x
RUN chmod 2775 /d && chmod 4755 /x && chmod 1777 /d/a && chown 1000:2000 /d/a/new && chmod 000 /d/a/new
RUN mkdir -p -m 700 "/names/with blank" && touch "/names/\u00fcmlaut" "/names/$(printf 'x%.0s' $(seq 200))"
RUN true
""",
}

PARENT: Context = {
    "Dockerfile": """
# Triggers for images that are built on this one.
FROM localhost/base:1
ENV STAGE=parent
ONBUILD ARG FLAVOUR=plain
ONBUILD COPY payload /onbuild/
ONBUILD RUN echo "$STAGE $FLAVOUR" > /onbuild/flavour
ENTRYPOINT ["/bin/entry"]
CMD ["from", "parent"]
""",
}

CHILD: Context = {
    "Dockerfile": """
# Inherits triggers, a command that its own entrypoint drops, and variables.
FROM localhost/parent:1
ENV STAGE=child
RUN echo $STAGE > /stage
ENTRYPOINT ["/bin/other"]
""",
    "payload": "p\n",
}

MOUNTS: Context = {
    "Dockerfile": """
# What a step sees without keeping it.
FROM localhost/base:1 AS tools
RUN mkdir -p /tools && echo tool > /tools/tool

FROM localhost/base:1
WORKDIR /build
RUN --mount=type=bind,source=src,target=/src --mount=type=tmpfs,target=/scratch \\
    cp -r /src /build/taken && echo scratch > /scratch/x
RUN --mount=type=bind,from=tools,source=/tools,target=/tools cat /tools/tool > from-tools
RUN --mount=type=cache,target=/var/cache/build,id=peers echo kept > /var/cache/build/x && cp /var/cache/build/x from-cache
RUN --mount=type=secret,id=token cat /run/secrets/token | wc -c > length
""",
    "src/a.txt": "a\n",
    "src/b/c.txt": "c\n",
    "token": "hush\n",
}

COPIES: Context = {
    "Dockerfile": """
# Where COPY puts things: files, directories, their contents, links, owners.
FROM localhost/base:1
COPY file /new/dir/name
COPY file /new/dir2/
COPY file /usr/lib
COPY file /lib/through-a-link
COPY tree /tree1
COPY tree/ /tree2/
COPY tree tree/sub /merged/
COPY tree /usr/lib/
COPY link /links/
COPY tree/link-inside /links/renamed
COPY --chown=app file /owned/by-name
COPY --chown=1234:1234 file /owned/by-number
COPY --chown=app:staff tree /owned/tree
COPY --chmod=600 file /modes/file
WORKDIR /home/app
USER app
WORKDIR made/by-user
COPY file .
COPY file relative/
""",
    "file": ("f\n", 0o640),
    "tree/one": ("1\n", 0o755),
    "tree/sub/two": "2\n",
    "tree/empty/.keep": "",
    "link": "-> file",
    "tree/link-inside": "-> sub/two",
}

#: Name → context. `child` needs `parent` to be built first.
CONTEXTS: dict[str, Context] = {
    name.lower(): table
    for name, table in (
        ("SITE", SITE), ("APPLICATION", APPLICATION), ("COMPILED", COMPILED), ("DATABASE", DATABASE),
        ("ARCHIVES", ARCHIVES), ("IGNORED", IGNORED), ("VARIABLES", VARIABLES), ("CHANGES", CHANGES), ("PARENT", PARENT),
        ("CHILD", CHILD), ("MOUNTS", MOUNTS), ("COPIES", COPIES),
    )
}  # fmt: skip


def make(directory: Path, table: Context) -> Path:
    """Write a context to a directory."""
    for name, what in table.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content, mode = what if isinstance(what, tuple) else (what, 0o644)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.startswith("-> "):
            path.unlink(missing_ok=True)
            os.symlink(content[3:], path)
            continue
        else:
            path.write_text(content)
        path.chmod(mode)
    for folder in (directory, *(path for path in directory.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o755)
    return directory
