# What .ci/run runs, by name. `just` itself is a convenience: every recipe is one plain command.

# The main job on embedded data.
demo:
    cargo run --release -- demo

# Needs a Rust toolchain and a C compiler, nothing else.
test:
    cargo test --release

lint:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings
    cargo clippy --release --no-default-features --all-targets -- -D warnings

# Live comparison with PyTorch, timm, transformers and the Python ONNX Runtime (pinned in tests/interop/requirements.txt).
interop:
    tests/interop/run

# Compares speed and memory with peers; prints ratios. Takes minutes and about 4 GB of disk.
peers:
    tests/interop/run --environment-only
    for script in benches/peers/*.py; do target/interop/venv/bin/python $script; done

# Licences and sources of every dependency (cargo install cargo-deny).
deny:
    cargo deny check
