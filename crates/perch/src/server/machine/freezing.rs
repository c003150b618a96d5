//! The wait for a freeze to come about.

use perch_core::lifecycle::FREEZE_TIMEOUT;
use tokio_util::sync::CancellationToken;

/// What came of a freeze, at most [`FREEZE_TIMEOUT`] after it began; [`None`] when the server ends before that.
///
/// A thaw may overtake a freeze, which then never comes about. A server that waited for it would end late, and callers of
/// stopped Machines with it; the next one looks for itself what is frozen.
pub(super) async fn outcome(
    frozen: impl Future<Output = Result<(), String>>,
    shutdown: &CancellationToken,
) -> Option<Result<(), String>> {
    tokio::select! {
        result = tokio::time::timeout(FREEZE_TIMEOUT, frozen) => {
            Some(result.unwrap_or_else(|_| Err("it did not freeze in time".to_owned())))
        }
        () = shutdown.cancelled() => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_that_ends_does_not_wait_for_a_freeze_that_never_comes_about() {
        let shutdown = CancellationToken::new();
        assert_eq!(outcome(async { Ok(()) }, &shutdown).await, Some(Ok(())));
        let late = async {
            shutdown.cancel();
            std::future::pending().await
        };
        assert_eq!(outcome(late, &shutdown).await, None);
    }
}
