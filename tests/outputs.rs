//! `--out`: one rule for every verb, on real devices, FIFOs, sockets and links. Nothing is destroyed unasked.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use tec_zoo::convert::{Request, convert};
use tec_zoo::data::FeatureFile;
use tec_zoo::destination::Destination;
use tec_zoo::model::Canonical;
use tec_zoo::onnx::{ExportOptions, export};
use tec_zoo::train::{Metrics, StepRecord};

use super::cli::{Program, fixture};

/// A program with something to make every kind of output of.
fn prepared() -> Program {
    let program = Program::new().with_model();
    program.stdout(0, &["register", "mae", "--name", "my-mae"]);
    fs::copy(fixture("mae_expected.safetensors"), program.dir().join("images.safetensors")).unwrap();
    let run = program.dir().join("run");
    fs::create_dir(&run).unwrap();
    let line = |step: u64| {
        let record = StepRecord {
            step,
            epoch: step as f64,
            lr: 1e-3,
            loss: 1.0,
            feature: None,
            attention: None,
            pixels: Some(1.0),
            grad_norm: 1.0,
            images: step,
            skipped: 0,
            images_per_second: 1.0,
            data_wait: 0.0,
            time: 1.7e9,
        };
        serde_json::to_string(&record).unwrap() + "\n"
    };
    fs::write(run.join(Metrics::NAME), [1, 2, 3].map(line).concat()).unwrap();
    program
}

/// Every verb that writes a file where `--out` says.
fn files(out: &str) -> [Vec<&str>; 4] {
    [
        vec!["export", "mae", "--no-check", "--out", out],
        vec!["embed", "mae", "images.safetensors", "--out", out],
        vec!["view", "curves", "run", "--out", out],
        vec!["bundle", "my-mae", "--out", out],
    ]
}

/// Every verb that writes a directory there.
fn directories(out: &str) -> [Vec<String>; 3] {
    let convert = ["convert", &fixture("mae_pretrain_vit_tiny.pth"), "--heads", "4", "--out", out].map(str::to_owned);
    let [timm, hf] = ["timm", "hf"].map(|to| ["convert", "mae", "--to", to, "--out", out].map(str::to_owned));
    [convert.into(), timm.into(), hf.into()]
}

fn strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Makes a device node; `None` where the system does not let us, which is said.
fn device(program: &Program, name: &str, minor: &str) -> Option<PathBuf> {
    let path = program.dir().join(name);
    let made = Command::new("mknod").arg(&path).args(["c", "1", minor]).output().unwrap();
    // A container may make one and not open it.
    if made.status.success() && File::options().write(true).open(&path).is_ok() {
        return Some(path);
    }
    eprintln!("not tested: device nodes cannot be made here ({})", String::from_utf8_lossy(&made.stderr).trim());
    None
}

#[test]
fn an_existing_file_is_refused_by_every_verb_and_replaced_only_on_request() {
    let program = prepared();
    let mine = |name: &str| fs::read_to_string(program.dir().join(name)).is_ok_and(|text| text == "mine");
    let refused_then_replaced = |arguments: &[&str], taken: &str| {
        fs::write(program.dir().join(taken), "mine").unwrap();
        let stderr = program.stderr(1, arguments);
        assert!(stderr.contains(&format!("`{taken}` exists")) && stderr.contains("--overwrite"), "{stderr}");
        assert!(mine(taken), "{arguments:?}");
        program.stdout(0, &[arguments, &["--overwrite"]].concat());
        assert!(!mine(taken), "{arguments:?}");
    };
    for arguments in files("x.svg") {
        refused_then_replaced(&arguments, "x.svg");
    }
    refused_then_replaced(&["convert", "mae", "--to", "timm", "--out", "x.safetensors"], "x.safetensors");
    // The configuration beside the weights is an output as well.
    for taken in ["x.pth", "x.py"] {
        for made in ["x.pth", "x.py"] {
            let _absent = fs::remove_file(program.dir().join(made));
        }
        refused_then_replaced(&["convert", "mae", "--to", "mmseg", "--size", "64", "--out", "x.pth"], taken);
    }
    refused_then_replaced(&["verify", "mae", "--record"], "mae/golden.safetensors");
}

#[test]
fn a_directory_is_replaced_only_on_request_and_only_if_it_holds_a_model() {
    let program = prepared();
    for arguments in directories("x") {
        let path = program.dir().join("x");
        program.stdout(0, &strs(&arguments));
        let stderr = program.stderr(1, &strs(&arguments));
        assert!(stderr.contains("`x` exists") && stderr.contains("--overwrite"), "{stderr}");
        let overwrite = [&strs(&arguments)[..], &["--overwrite"]].concat();
        program.stdout(0, &overwrite);
        fs::write(path.join("notes.txt"), "mine").unwrap();
        let stderr = program.stderr(1, &overwrite);
        assert!(stderr.contains("`notes.txt`"), "{stderr}");
        assert_eq!(fs::read_to_string(path.join("notes.txt")).unwrap(), "mine");
        // A file stands in the way as well, and so does a folder whose name a model's file has.
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        assert!(program.stderr(1, &overwrite).contains("`x` is a file, and a directory is to be written"));
        fs::remove_file(&path).unwrap();
        fs::create_dir_all(path.join("config.json")).unwrap();
        program.stderr(1, &overwrite);
        fs::remove_dir_all(&path).unwrap();
    }
    for arguments in files("run") {
        let stderr = program.stderr(1, &[&arguments[..], &["--overwrite"]].concat());
        assert!(stderr.contains("`run` is a directory, and a file is to be written"), "{stderr}");
    }
}

#[test]
fn a_device_is_written_to_and_stays_a_device() {
    let program = prepared();
    let Some(null) = device(&program, "null", "3") else { return };
    let full = device(&program, "full", "7");
    for arguments in files("null") {
        program.stdout(0, &arguments);
        program.stdout(0, &[&arguments[..], &["--overwrite"]].concat());
        assert!(fs::metadata(&null).unwrap().file_type().is_char_device(), "{arguments:?}");
    }
    program.stdout(0, &["export", "mae", "--out", "null"]);
    for arguments in directories("null") {
        let stderr = program.stderr(1, &[&strs(&arguments)[..], &["--overwrite"]].concat());
        assert!(stderr.contains("`null` is a device, and a directory is to be written"), "{stderr}");
    }
    assert!(fs::metadata(&null).unwrap().file_type().is_char_device());
    let Some(full) = full else { return };
    for arguments in files("full") {
        let output = program.run(&arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains("`full`") && stderr.contains("space"), "{stderr}");
        assert!(fs::metadata(&full).unwrap().file_type().is_char_device(), "{arguments:?}");
    }
}

#[test]
fn a_fifo_gets_the_whole_file_and_stays_a_fifo() {
    let program = prepared();
    let fifo = program.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for (arguments, file) in files("fifo").iter().zip(files("file.svg")) {
        program.stdout(0, &[&file[..], &["--overwrite"]].concat());
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        program.stdout(0, arguments);
        let read = reader.join().unwrap();
        assert!(read == fs::read(program.dir().join("file.svg")).unwrap(), "{arguments:?}: {} bytes", read.len());
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo(), "{arguments:?}");
    }
    for arguments in directories("fifo") {
        let stderr = program.stderr(1, &strs(&arguments));
        assert!(stderr.contains("`fifo` is a FIFO, and a directory is to be written"), "{stderr}");
    }
}

#[test]
fn a_socket_is_refused_by_name() {
    let program = prepared();
    let socket = program.dir().join("socket");
    let _listening = UnixListener::bind(&socket).unwrap();
    let all = files("socket").map(|arguments| arguments.into_iter().map(str::to_owned).collect::<Vec<_>>());
    for arguments in all.into_iter().chain(directories("socket")) {
        for extra in [&[][..], &["--overwrite"]] {
            let stderr = program.stderr(1, &[&strs(&arguments)[..], extra].concat());
            assert!(stderr.contains("`socket` is a socket"), "{stderr}");
        }
    }
    assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
}

#[test]
fn a_links_target_takes_the_output_and_the_link_stays() {
    let program = prepared();
    let at = |name: &str| program.dir().join(name);
    fs::create_dir(at("elsewhere")).unwrap();
    symlink("second", at("link")).unwrap();
    symlink("elsewhere/target", at("second")).unwrap();
    let links_stay = || {
        assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("second"));
        assert_eq!(fs::read_link(at("second")).unwrap(), Path::new("elsewhere/target"));
    };
    for arguments in files("link") {
        // What a dangling link leads to is made, beside where it leads.
        program.stdout(0, &arguments);
        links_stay();
        assert!(fs::symlink_metadata(at("elsewhere/target")).unwrap().is_file(), "{arguments:?}");
        fs::write(at("elsewhere/target"), "mine").unwrap();
        assert!(program.stderr(1, &arguments).contains("`link` exists"));
        program.stdout(0, &[&arguments[..], &["--overwrite"]].concat());
        links_stay();
        assert!(fs::metadata(at("elsewhere/target")).unwrap().len() > 4, "{arguments:?}");
        assert_eq!(fs::read_dir(at("elsewhere")).unwrap().count(), 1);
        fs::remove_file(at("elsewhere/target")).unwrap();
    }
    for arguments in directories("link") {
        program.stdout(0, &strs(&arguments));
        assert!(program.stderr(1, &strs(&arguments)).contains("`link` exists"));
        let before = fs::metadata(at("elsewhere/target")).unwrap().ino();
        program.stdout(0, &[&strs(&arguments)[..], &["--overwrite"]].concat());
        links_stay();
        assert_ne!(fs::metadata(at("elsewhere/target")).unwrap().ino(), before, "{arguments:?}");
        fs::remove_dir_all(at("elsewhere/target")).unwrap();
    }
    symlink("nowhere/x", at("lost")).unwrap();
    for arguments in files("lost") {
        let stderr = program.stderr(1, &arguments);
        assert!(stderr.contains("`lost`") && stderr.contains("the folder `nowhere` does not exist"), "{stderr}");
    }
    symlink("ring", at("ring")).unwrap();
    assert!(program.stderr(1, &files("ring")[0]).contains("`ring`"));
}

#[test]
fn a_dash_is_standard_output_which_then_takes_nothing_else() {
    let program = prepared();
    for (arguments, file) in files("-").iter().zip(files("file.svg")) {
        program.stdout(0, &[&file[..], &["--overwrite"]].concat());
        let output = program.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        let wanted = fs::read(program.dir().join("file.svg")).unwrap();
        assert!(output.stdout == wanted, "{arguments:?}: {} bytes of {}", output.stdout.len(), wanted.len());
    }
    // What a check finds is conversation then.
    let checked = program.run(&["export", "mae", "--out", "-"]);
    program.stdout(0, &["export", "mae", "--no-check", "--out", "checked.onnx"]);
    assert!(checked.stdout == fs::read(program.dir().join("checked.onnx")).unwrap());
    assert!(String::from_utf8_lossy(&checked.stderr).contains("last_hidden_state"));
    for verb in [&files("-")[0], &files("-")[3]] {
        assert!(program.stderr(2, &[&verb[..], &["--json"]].concat()).contains("standard output"));
    }
    for arguments in directories("-") {
        let stderr = program.stderr(1, &strs(&arguments));
        assert!(stderr.contains("`-` is standard output, and a directory is to be written"), "{stderr}");
    }
    assert!(!program.names().contains(&"-".to_owned()));
}

#[test]
fn a_missing_folder_is_named_and_no_temporary_file_is() {
    let program = prepared();
    fs::write(program.dir().join("file"), "mine").unwrap();
    let both = |out: &'static str| {
        let files = files(out).map(|arguments| arguments.into_iter().map(str::to_owned).collect::<Vec<_>>());
        files.into_iter().chain(directories(out)).collect::<Vec<_>>()
    };
    for arguments in both("nodir/sub/x.svg") {
        let stderr = program.stderr(1, &strs(&arguments));
        assert!(stderr.contains("the folder `nodir/sub` does not exist"), "{stderr}");
        assert!(!stderr.contains(".tec-zoo-") && !stderr.contains("os error"), "{stderr}");
    }
    for arguments in both("file/x.svg") {
        assert!(program.stderr(1, &strs(&arguments)).contains("`file` is no folder"));
    }
}

/// What the question at the beginning could not know.
#[test]
fn what_appears_meanwhile_is_not_replaced_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let converted = |name: &str, overwrite: bool, meanwhile: &dyn Fn()| {
        let request = Request { heads: Some(4), ..Request::default() };
        let out = Destination::new(at(name)).overwrite(overwrite);
        convert(fixture("mae_pretrain_vit_tiny.pth").as_ref(), out, &request, &mut |_| {
            meanwhile();
            ControlFlow::Continue(())
        })
    };
    let theirs = |name: &str| {
        fs::create_dir_all(at(name)).unwrap();
        fs::write(at(name).join("theirs"), "theirs").unwrap();
    };
    // With leave to replace neither, since what came is no model.
    for (name, overwrite) in [("late", false), ("later", true)] {
        let error = converted(name, overwrite, &|| theirs(name)).unwrap_err().to_string();
        assert!(error.contains("exists"), "{error}");
        assert_eq!(fs::read_to_string(at(name).join("theirs")).unwrap(), "theirs");
    }
    let model = Canonical::open(&converted("mae", false, &|| ()).unwrap().dir).unwrap();
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["late", "later", "mae"]);

    let mut features = FeatureFile::new(&at("features.safetensors")).unwrap();
    features.append("cls", &[1, 2], &[1.0, 2.0]).unwrap();
    fs::write(at("features.safetensors"), "theirs").unwrap();
    let error = features.finish(&[]).unwrap_err().to_string();
    assert!(error.contains("exists"), "{error}");
    assert_eq!(fs::read_to_string(at("features.safetensors")).unwrap(), "theirs");

    // Weights beside a graph are an output like the graph.
    fs::write(at("x.onnx.data"), "theirs").unwrap();
    let options = ExportOptions { external_above: 0, ..ExportOptions::default() };
    let error = export(&model, &at("x.onnx"), &options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(error.contains("x.onnx.data` exists"), "{error}");
    assert!(!at("x.onnx").exists());
    assert_eq!(fs::read_to_string(at("x.onnx.data")).unwrap(), "theirs");
    let over = Destination::new(at("x.onnx")).overwrite(true);
    export(&model, over, &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(fs::metadata(at("x.onnx.data")).unwrap().len() > 100_000);
}
