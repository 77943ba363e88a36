//! The `tec-zoo` program: parse, run, print once, exit code. Everything else is in [`tec_zoo::cli`].

fn main() -> std::process::ExitCode {
    tec_zoo::cli::main()
}
