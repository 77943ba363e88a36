//! An error's whole text, for places that keep words and not the error: each message is free of its cause's.

/// What failed and each cause of it, in one line: `cannot read `x`: permission denied`.
pub(crate) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
