# A node: coordjournal from this checkout on Python's own image, as a user who is nobody else.
ARG PYTHON_IMAGE=python:3.12.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY coordjournal coordjournal
RUN python3 -m venv /opt/coordjournal \
    && /opt/coordjournal/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/coordjournal /opt/coordjournal
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/coordjournal --shell /usr/sbin/nologin coordjournal \
    && install --directory --owner coordjournal --group coordjournal /var/lib/coordjournal
ENV PATH=/opt/coordjournal/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    COORDJOURNAL_REPO=/var/lib/coordjournal/wiki.git
USER coordjournal
WORKDIR /var/lib/coordjournal
CMD ["coordjournal", "node"]
