//! Long work on graphs is heard, and ends where its listener says so, with nothing half-written.

use std::ops::ControlFlow;

use super::*;
use tec_zoo::destination::Destination;
use tec_zoo::onnx::matrix::{Variant, row};
use tec_zoo::onnx::{self, CalibrationError, Calibrator, CheckError, Event};

/// Names in a folder, hidden ones included.
fn names(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn each_runtime_is_done_before_the_next_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions { size: Size::Dynamic, ..Default::default() }).unwrap();
    let options = CheckOptions { runtimes: runtimes(), runtime: runtime_options(), ..Default::default() };
    let mut heard = Vec::new();
    let report = onnx::check(&path, Reference::Model(&model), &options, &mut |event| {
        heard.extend(match event {
            Event::Reference { .. } => Some(("eager", false)),
            Event::Opening { runtime } => Some((runtime.name(), true)),
            Event::Running { runtime, .. } => Some((runtime.name(), false)),
            _ => None,
        });
        ControlFlow::Continue(())
    });
    assert_eq!(report.unwrap().holds, Some(true));
    let mut expected = vec![("eager", false); 3];
    for runtime in runtimes() {
        expected.push((runtime.name(), true));
        expected.extend([(runtime.name(), false); 3]);
    }
    assert_eq!(heard, expected);
}

#[test]
fn a_check_ends_at_any_event_its_listener_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    export(&model, &path, &ExportOptions::default()).unwrap();
    let options = CheckOptions { runtimes: runtimes(), runtime: runtime_options(), ..Default::default() };
    let mut heard = 0;
    onnx::check(&path, Reference::Model(&model), &options, &mut |event| {
        heard += usize::from(event != Event::Working);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(heard > 2 * runtimes().len(), "{heard}");
    for at in 0..heard {
        let mut left = at;
        let ended = onnx::check(&path, Reference::Model(&model), &options, &mut |event| match (event, left) {
            (Event::Working, _) => ControlFlow::Continue(()),
            (_, 0) => ControlFlow::Break(()),
            _ => {
                left -= 1;
                ControlFlow::Continue(())
            }
        });
        assert!(matches!(ended, Err(CheckError::Interrupted(_))), "{at}: {ended:?}");
    }
    // And where it is asked while a runtime runs: that one is told to stop.
    let images = Some(Images::synthetic(256, [32, 24]));
    for runtime in runtimes() {
        let options = CheckOptions { runtimes: vec![runtime], images: images.clone(), ..options.clone() };
        let mut asked = false;
        let ended = onnx::check(&path, Reference::FirstRuntime, &options, &mut |event| {
            asked |= event == Event::Working;
            if event == Event::Working { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(!asked || matches!(ended, Err(CheckError::Interrupted(_))), "{runtime}: {ended:?}");
    }
}

#[test]
fn an_export_that_is_ended_leaves_what_was_there_before() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let path = file(&dir, "x.onnx");
    let nothing = names(&dir);
    for external_above in [u64::MAX, 0] {
        let options = ExportOptions { external_above, ..Default::default() };
        for at in [0, 1, 20] {
            let mut left = at;
            let ended = onnx::export(&model, &path, &options, &mut |event| {
                let Event::Writing { bytes, total } = event else { return ControlFlow::Continue(()) };
                assert!(bytes <= total);
                left -= 1;
                if left < 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert!(matches!(ended, Err(ExportError::Interrupted(_))), "{ended:?}");
            assert_eq!(names(&dir), nothing);
        }
    }
    std::fs::write(&path, "before").unwrap();
    let out = Destination::new(&path).overwrite(true);
    let ended = onnx::export(&model, out, &ExportOptions::default(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(ExportError::Interrupted(_))), "{ended:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"before");
}

#[test]
fn a_matrix_and_a_calibration_end_too() {
    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let scratch = tempfile::tempdir().unwrap();
    let variant = Variant { labels: vec![], options: ExportOptions::default() };
    let options = CheckOptions { runtime: runtime_options(), ..Default::default() };
    let ended = row(&model, &variant, scratch.path(), &options, &mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(CheckError::Export(_) | CheckError::Interrupted(_))), "{ended:?}");
    let ended =
        Calibrator::new(&model, &variant.options, scratch.path(), &runtime_options(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(CalibrationError::Export(ExportError::Interrupted(_)))), "{ended:?}");
    assert_eq!(names(&scratch), [] as [&str; 0]);
}

#[test]
fn a_pass_that_forgets_its_weights_gives_the_same_numbers_and_can_be_ended() {
    use candle_core::{DType, Device, Tensor};
    use tec_zoo::kernels::{Eager, KernelError};

    let dir = tempfile::tempdir().unwrap();
    let model = Nano::default().write(&file(&dir, "nano"));
    let images = Tensor::from_vec(Images::synthetic(2, [32, 24]).values, (2, 3, 32, 24), &Device::Cpu).unwrap();
    let values = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let kept = Eager::new(&model).features(&images).unwrap();
    let mut layers = Vec::new();
    let tell = |name: &str| {
        layers.push(name.to_owned());
        ControlFlow::Continue(())
    };
    use tec_zoo::model::Vit;
    let mut ops = Eager::new(&model).forgetful().attended(tell);
    let grid = ops.grid(&images).unwrap();
    let forgotten = Vit::new(&model.config().vit).encode(&mut ops, &images, grid).unwrap();
    drop(ops);
    assert_eq!(values(kept.last()), values(forgotten.last()));
    assert!(layers.iter().any(|name| name == "blocks.5.mlp.fc2"), "{layers:?}");
    let mut ops = Eager::new(&model).attended(|_: &str| ControlFlow::Break(()));
    let ended = Vit::new(&model.config().vit).encode(&mut ops, &images, grid);
    assert!(matches!(ended, Err(KernelError::Interrupted)));
    model.release();
    assert_eq!(values(kept.last()), values(Eager::new(&model).features(&images).unwrap().last()));
}
