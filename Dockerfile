# Images of the control plane and of the CPU worker, one target each:
#
#   control-plane   operator, gateway and node plugin
#   registry        the registry, with git
#   worker          the worker for CPUs, which needs no libtorch (Dockerfile.cuda and
#                   Dockerfile.rocm have those for GPUs)
#
#   docker build --target worker -t hyprstream/worker .
#
# `cargo xtask images` builds all of them without a registry and without Docker: it makes the base
# image with mmdebstrap and passes the binaries that it has built already as the build context
# `bin`, which then stands in for the stage of this name.
#
# `cargo xtask images --compile-stages` runs the whole file from its first line on, with Debian and
# this machine's toolchain as the image of Rust, and starts every program that comes out. Seen so
# far: the target `worker` from the first line to a program that starts, and with it the stage
# `build`; of the other targets the stages of the images, with programs that were built outside.
ARG RUST_IMAGE=docker.io/library/rust:1.95-bookworm
ARG BASE_IMAGE=docker.io/library/debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libssl-dev pkg-config python3-pip zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV CARGO_INCREMENTAL=0
RUN cargo build --release --locked -p hyprstream-worker \
      -p hyprstream-operator -p hyprstream-registry -p hyprstream-csi -p hyprstream-gateway

FROM scratch AS bin
COPY --from=build /src/target/release/hyprstream-operator /
COPY --from=build /src/target/release/hyprstream-registry /
COPY --from=build /src/target/release/hyprstream-csi /
COPY --from=build /src/target/release/hyprstream-gateway /
COPY --from=build /src/target/release/hyprstream-worker /

FROM ${BASE_IMAGE} AS control-plane
# e2fsprogs makes the disks of volumes that are written to.
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates e2fsprogs libssl3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=bin hyprstream-operator hyprstream-gateway hyprstream-csi /usr/local/bin/
USER 65532:65532

FROM ${BASE_IMAGE} AS registry
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates git libssl3 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=bin hyprstream-registry /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hyprstream-registry"]

FROM ${BASE_IMAGE} AS worker
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libssl3 libstdc++6 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=bin hyprstream-worker /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/hyprstream-worker"]
