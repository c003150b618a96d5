//! Calls whose connection becomes something else: `POST /v1/apps/{app}/proxy` a raw stream to an address inside the app's
//! network, `POST …/machines/{id}/console` the frames of a console.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::answer::{Answer, Outcome, empty};
use super::handler::Call;
use super::query;
use super::{Backend, Peer, Phase, Session, reached, token_ended};
use crate::relay;
use crate::wire::{ApiError, ConsoleInput};

// No name is longer (RFC 1035), and no address either.
const HOST_BYTES_MAX: usize = 253;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

pub(super) async fn open<B: Backend>(call: Call<B>, app: String) -> Outcome {
    check_upgrade(&call)?;
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
    Ok(switch(call, stream))
}

/// Begins a console; what is wrong with it is an ordinary answer.
pub(super) async fn open_console<B: Backend>(call: Call<B>, app: &str, id: &str) -> Outcome {
    check_upgrade(&call)?;
    let query = call.query()?;
    let side = |key: &str| -> Result<Option<u16>, ApiError> {
        let number = query.number(key)?.map(u16::try_from).transpose();
        number.map_err(|_| query::bad(key, query.get(key).unwrap_or_default(), "0 to 65535"))
    };
    let (rows, columns) = (side("rows")?, side("columns")?);
    let input = ConsoleInput {
        cmd: query.owned("cmd").unwrap_or_default(),
        user: query.owned("user").unwrap_or_default(),
        terminal: query.flag("tty")?.then(|| (rows.unwrap_or(24), columns.unwrap_or(80))),
        term: query.owned("term").unwrap_or_default(),
    };
    let target = call.target(app, id);
    let stream = call.backend().open_console(call.peer.clone(), target, input).await?;
    Ok(switch(call, stream))
}

fn check_upgrade<B: Backend>(call: &Call<B>) -> Result<(), ApiError> {
    if call.header(UPGRADE.as_str()).is_some_and(|protocol| protocol.eq_ignore_ascii_case("tcp")) {
        return Ok(());
    }
    Err(ApiError::new(426, "this call needs the header `Upgrade: tcp`"))
}

fn switch<B: Backend, S: Stream>(call: Call<B>, stream: S) -> Answer {
    let Call { session, upgrade, peer, .. } = call;
    tokio::spawn(copy(stream, upgrade, session, peer));
    let mut answer = empty(StatusCode::SWITCHING_PROTOCOLS);
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static("tcp"));
    answer
}

/// Copies both ways until both have ended, the caller's token or the server ends. Keeps the
/// connection's place.
async fn copy<B: Backend, S: Stream>(
    stream: S,
    upgrade: OnUpgrade,
    session: Arc<Session<B>>,
    peer: Peer,
) {
    let mut phase = session.phase.clone();
    let _permit = Arc::clone(&session.permit);
    let work = async {
        let client = TokioIo::new(upgrade.await.map_err(std::io::Error::other)?);
        relay(client, stream).await
    };
    tokio::select! {
        outcome = work => if let Err(error) = outcome {
            tracing::debug!(%error, %peer, "proxied stream ended");
        },
        () = token_ended(session.backend.as_ref(), &peer) => {}
        () = reached(&mut phase, Phase::Closing) => {}
    }
}
