//! On the screen the library's fields are flags again, a cause stands there once, and the advice last.

use serde_json::Value;

use crate::cli::{Program, fixture};

#[test]
fn advice_names_the_flags_to_give() {
    let program = Program::new().with_model();
    let mae = fixture("mae_pretrain_vit_tiny.pth");
    let ibot = fixture("ibot_checkpoint_full.pth");
    for (code, arguments, hint) in [
        (1, &["convert", &mae, "--out", "m"][..], "hint: add `--heads N`"),
        (
            1,
            &["convert", &ibot, "--heads", "4", "--out", "m"],
            "hint: choose one: `--branch student` or `--branch teacher`",
        ),
        (1, &["convert", &mae, "--family", "mocov3", "--out", "m"], "hint: did you mean `--family moco-v3`?"),
        (
            1,
            &["convert", "mae", "--to", "mmdet", "--size", "512x768", "--out", "m.pth"],
            "hint: `--size 1024`; its inputs",
        ),
        (
            2,
            &["export", "mae", "--size", "90x128", "--out", "x.onnx"],
            "such as `--size 96x128`, or made so by `--pad`",
        ),
        (1, &["export", "mae", "--adapters", "keep", "--out", "x.onnx"], "hint: convert a TEC training checkpoint"),
        (1, &["stats", "--recipe", "nanoo"], "hint: did you mean `nano`? there are "),
        (1, &["info", "mae-vit"], "`tec-zoo list` shows all of them"),
        (1, &["verify", "mae"], "hint: `--golden FILE` replays somebody else's, `--record` stores its own"),
        (4, &["fetch", "mae-vitb", "--offline"], "hint: fetch it once online, or give the file with `--from FILE`"),
        (1, &["bundle", "mae-vitb", "--out", "b"], "hint: `tec-zoo fetch mae-vitb`"),
        (1, &["fetch", "facebook/vit-mae-base"], "hint: `mae-vitb-visualize` is the model of facebook/vit-mae-base"),
        (1, &["fetch", "somebody/something"], "no model here is from there"),
        (1, &["contract", "mae", "--diff", "mmseg"], "hint: did you mean `mmseg-mae-upernet`?"),
        (1, &["contract", "mae", "--diff", "unlike"], "hint: consumers are `detectron2-vitdet`, "),
        (2, &["inspect", "htps://example.org/x.pth"], "hint: an address begins with https://"),
        (2, &["fetch", "mae-vitb", "--from", "ftp://example.org/x.pth"], "hint: an address begins with https://"),
    ] {
        let stderr = program.stderr(code, arguments);
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("hint: ") && last.contains(hint.trim_start_matches("hint: ")), "{stderr}");
        assert_eq!(stderr.matches("hint: ").count(), 1, "{stderr}");
    }
}

#[test]
fn a_cause_is_printed_once_and_the_advice_after_it() {
    let program = Program::new();
    let stderr = program.stderr(1, &["inspect", "absent.pth"]);
    assert_eq!(stderr, "error: cannot open `absent.pth`: No such file or directory (os error 2)\n");

    let stderr = program.stderr(4, &["fetch", "mae-vitb", "--offline"]);
    let told = "error: `mae-vitb` is not fetched: `mae-vitb` is not in the store and this is offline\nhint: ";
    assert!(
        stderr.ends_with(&format!("{told}fetch it once online, or give the file with `--from FILE`\n")),
        "{stderr}"
    );

    std::fs::write(program.dir().join("cut.safetensors"), [2_u8, 0, 0, 0, 0, 0, 0, 0, b'{', b'!']).unwrap();
    let stderr = program.stderr(1, &["inspect", "cut.safetensors"]);
    assert_eq!(stderr.matches("cut.safetensors").count(), 1, "{stderr}");
    assert_eq!((stderr.lines().count(), stderr.matches("at line 1").count()), (1, 1), "{stderr}");
}

#[test]
fn a_failure_under_json_is_one_object_on_stderr_and_nothing_on_stdout() {
    let program = Program::new().with_model();
    let mae = fixture("mae_pretrain_vit_tiny.pth");
    for (code, arguments) in [
        (1, &["convert", &mae, "--out", "m", "--json"][..]),
        (1, &["inspect", "absent.pth", "--json"]),
        (1, &["contract", "mae", "--diff", "mmseg", "--json"]),
        (1, &["stats", "--recipe", "nanoo", "--json"]),
        (4, &["fetch", "mae-vitb", "--offline", "--json"]),
        (2, &["list", "--family", "tecc", "--json"]),
        (2, &["cache", "verify", "--json", "--bogus"]),
        (2, &["check", "--json"]),
    ] {
        let stderr = program.stderr(code, arguments);
        let last: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
        assert_eq!((&last["schema"], &last["exit"]), (&Value::from(1), &Value::from(code)), "{stderr}");
        assert!(last["error"].is_string() && last["causes"].is_array(), "{stderr}");
        assert!(!stderr.contains("error: "), "{stderr}");
    }
    let said = |arguments: &[&str]| -> Value {
        let output = program.run(arguments);
        serde_json::from_slice(output.stderr.split(|byte| *byte == b'\n').rev().nth(1).unwrap()).unwrap()
    };
    let heads = said(&["convert", &mae, "--out", "m", "--json"]);
    assert_eq!(heads["hint"], "add `--heads N`");
    let absent = said(&["inspect", "absent.pth", "--json"]);
    assert_eq!(absent["error"], "cannot open `absent.pth`");
    assert_eq!(absent["causes"][0], "No such file or directory (os error 2)");
    assert_eq!(absent["hint"], Value::Null);
}

#[test]
fn a_plain_models_statistics_have_no_line_of_zeros() {
    let program = Program::new().with_model();
    let stdout = program.stdout(0, &["stats", "mae"]);
    assert!(stdout.contains("multiply-accumulates") && !stdout.contains(" 0.000 G"), "{stdout}");
    assert!(!stdout.contains("gradient"), "{stdout}");
}
