//! Commands that ask the running server, and how they end.

use std::process::ExitCode;

use anyhow::Context;
use perch_api::client::{Client, ClientError, Result};

use crate::command::Place;
use crate::paths::Paths;

/// Asks the server of this place.
///
/// # Errors
/// What the server answers, or that none runs there.
pub(crate) fn ask<T, A: Future<Output = Result<T>>>(
    place: &Place,
    ask: impl FnOnce(Client) -> A,
) -> anyhow::Result<T> {
    let client = Client::unix(Paths::new(place.data_dir.as_deref())?.api_socket());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    Ok(runtime.block_on(ask(client))?)
}

/// Prints why it failed, if it did, and what to do about it.
pub(crate) fn end(done: &anyhow::Result<()>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let code = crate::fail(error);
    if let Some(hint) = error.downcast_ref::<ClientError>().and_then(ClientError::hint) {
        eprintln!("  {hint}");
    }
    code
}
