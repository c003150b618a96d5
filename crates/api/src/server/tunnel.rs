//! `POST /v1/apps/{app}/proxy`: the connection becomes a raw stream to an address inside the app's
//! network.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::answer::{Outcome, empty};
use super::handler::Call;
use super::query;
use super::{Backend, Peer, Phase, Session, reached, token_ended};
use crate::wire::ApiError;

// No name is longer (RFC 1035), and no address either.
const HOST_BYTES_MAX: usize = 253;

pub(super) async fn open<B: Backend>(call: Call<B>, app: String) -> Outcome {
    if !call.header(UPGRADE.as_str()).is_some_and(|protocol| protocol.eq_ignore_ascii_case("tcp")) {
        return Err(ApiError::new(426, "this call needs the header `Upgrade: tcp`"));
    }
    let query = call.query()?;
    let host = query.required("host")?;
    if HOST_BYTES_MAX < host.len() {
        return Err(ApiError::bad_request(format!("a host has at most {HOST_BYTES_MAX} bytes")));
    }
    let port = query.required("port")?;
    let port = port.parse().ok().filter(|port| 0 < *port);
    let port = port
        .ok_or_else(|| query::bad("port", query.get("port").unwrap_or_default(), "1 to 65535"))?;
    // Connected before the switch, so that a refusal is an ordinary answer.
    let stream = call.backend().open_stream(call.peer.clone(), app, host, port).await?;
    let Call { session, upgrade, peer, .. } = call;
    tokio::spawn(copy(stream, upgrade, session, peer));
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
    Ok(answer)
}

/// Copies both ways until both have ended, the caller's token or the server ends. Keeps the
/// connection's place.
async fn copy<B: Backend>(
    mut stream: B::Stream,
    upgrade: OnUpgrade,
    session: Arc<Session<B>>,
    peer: Peer,
) {
    let mut phase = session.phase.clone();
    let _permit = Arc::clone(&session.permit);
    let work = async {
        let mut client = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
        tokio::io::copy_bidirectional(&mut client, &mut stream).await
    };
    tokio::select! {
        outcome = work => if let Err(error) = outcome {
            tracing::debug!(%error, %peer, "proxied stream ended");
        },
        () = token_ended(session.backend.as_ref(), &peer) => {}
        () = reached(&mut phase, Phase::Closing) => {}
    }
}
