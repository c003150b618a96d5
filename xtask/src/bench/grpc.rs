//! The upstream of the row of gRPC in `proxy`: answers every call with one message of 64 bytes, and a status in trailers. By the
//! crate `h2`, on the core of the generator: only what proxies cost is compared.

use anyhow::{Context, Result};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// What callers send and get: a message that is not compressed, its length, and 64 bytes.
pub(super) const MESSAGE: &[u8] = b"\0\0\0\0\x40\
    0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n";

/// Serves a port for ever.
pub(super) fn serve(listener: std::net::TcpListener) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await.context("accepting")?;
            // A caller that goes away in the middle is its own business.
            tokio::task::spawn_local(async move { drop(converse(stream).await) });
        }
    })
}

async fn converse(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut connection = server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::task::spawn_local(async move { drop(answer(request, respond).await) });
    }
    Ok(())
}

async fn answer(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    while let Some(piece) = body.data().await {
        let length = piece?.len();
        body.flow_control().release_capacity(length)?;
    }
    let answer = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(answer, false)?;
    stream.send_data(Bytes::from_static(MESSAGE), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    Ok(stream.send_trailers(trailers)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_as_long_as_it_says() {
        assert_eq!((MESSAGE[4], MESSAGE.len()), (64, 5 + 64));
    }
}
