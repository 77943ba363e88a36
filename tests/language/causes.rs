//! An error's text does not hold its cause's: who prints the chain would say it twice.

use std::error::Error;
use std::io;

use tec_zoo::checkpoint::CheckpointError;
use tec_zoo::convert::ConvertError;
use tec_zoo::data::DataError;
use tec_zoo::fetch::FetchError;
use tec_zoo::identify::IdentifyError;
use tec_zoo::kernels::KernelError;
use tec_zoo::model::CanonicalError;
use tec_zoo::model::position::PositionError;
use tec_zoo::onnx::{ExportError, ReadError};
use tec_zoo::train::{RecipeError, RunError};
use tec_zoo::verify::VerifyError;
use tec_zoo::view::ViewError;
use tec_zoo::zoo::ZooError;

const CAUSE: &str = "the dog ate it";

fn source() -> io::Error {
    io::Error::other(CAUSE)
}

/// One error of each kind that has a cause.
fn caused() -> Vec<Box<dyn Error>> {
    let path = || "x".to_owned();
    let action = "read";
    let reread = || Box::new(CheckpointError::Reread { source: source() });
    vec![
        Box::new(CheckpointError::In { path: path(), source: reread() }),
        Box::new(CheckpointError::Io { path: path(), source: source() }),
        reread(),
        Box::new(ConvertError::Io { action, path: path(), source: source() }),
        Box::new(CanonicalError::Io { path: path(), source: source() }),
        Box::new(DataError::Io { path: path(), source: source() }),
        Box::new(DataError::Write { path: path(), source: source() }),
        Box::new(FetchError::Io { action, path: path(), source: source() }),
        Box::new(IdentifyError::Io { action, path: path(), source: source() }),
        Box::new(KernelError::Operation { operation: path(), source: candle_core::Error::Msg(CAUSE.to_owned()) }),
        Box::new(ExportError::Write { path: path(), source: source() }),
        Box::new(ReadError::Io { path: path(), source: source() }),
        Box::new(RecipeError::Io { path: path(), source: source() }),
        Box::new(RunError::Io { action, path: path(), source: source() }),
        Box::new(VerifyError::Write { path: path(), source: source() }),
        Box::new(ViewError::Read { run: path(), source: source() }),
        Box::new(ViewError::Write { path: path(), source: source() }),
        Box::new(ZooError::Io { path: path(), source: source() }),
    ]
}

#[test]
fn no_error_of_the_library_says_its_cause_itself() {
    for error in caused() {
        let (text, cause) = (error.to_string(), error.source().expect("it has a cause").to_string());
        assert!(!text.contains(&cause) && !text.contains(CAUSE), "{text} says its cause: {cause}");
    }
}

#[test]
fn patches_that_cannot_be_placed_leave_the_reason_to_their_cause() {
    let empty = || PositionError::EmptyGrid { native: [2, 2], grid: [0, 2] };
    let error = KernelError::from(empty());
    assert!(!error.to_string().contains(&empty().to_string()), "{error}");
    assert_eq!(error.source().unwrap().to_string(), empty().to_string());
}
