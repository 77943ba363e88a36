//! The `tec-zoo` program: parse, run, print once, exit code. Everything else is in [`tec_zoo::cli`].

mod allocator;

fn main() -> std::process::ExitCode {
    tec_zoo::cli::main(allocator::keep_freed_memory)
}
