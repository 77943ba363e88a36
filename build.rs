//! What Rust's compiler cannot translate: MPI's calls (feature `mpi`). Without that feature, nothing happens.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "mpi")]
    mpi();
}

/// Compiles the calls with the MPI library's own compiler, `mpicc` or what `MPICC` names, and links the library.
#[cfg(feature = "mpi")]
fn mpi() {
    const SOURCE: &str = "src/train/distributed/mpi.c";
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=MPICC");
    println!("cargo:rerun-if-env-changed=PATH");
    let mpicc = std::env::var("MPICC").unwrap_or_else(|_| "mpicc".into());
    // Both Open MPI's wrapper and MPICH's answer `-show` with the command they stand for.
    let shown = std::process::Command::new(&mpicc).arg("-show").output();
    let command = match &shown {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout),
        Ok(output) => fail(&mpicc, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => fail(&mpicc, &error.to_string()),
    };
    cc::Build::new().compiler(&mpicc).file(SOURCE).compile("tec_zoo_mpi");
    for word in command.split_whitespace() {
        if let Some(folder) = word.strip_prefix("-L") {
            println!("cargo:rustc-link-search=native={folder}");
            // The library of a folder the loader does not know is found where it was linked.
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        } else if let Some(library) = word.strip_prefix("-l") {
            println!("cargo:rustc-link-lib={library}");
        }
    }
}

#[cfg(feature = "mpi")]
fn fail(mpicc: &str, reason: &str) -> ! {
    eprintln!("the feature `mpi` needs an MPI library: `{mpicc} -show` failed: {reason}");
    eprintln!("hint: install one (Debian: libopenmpi-dev openmpi-bin), or name its compiler in MPICC");
    std::process::exit(1)
}
