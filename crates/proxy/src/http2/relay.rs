//! One stream and its answer, over a stream of a Machine's connection of HTTP/2.

use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Request, Response};

use super::answer::{self, Signature};
use super::body::{Body, Piece};
use super::compressed;
use super::exchange::{Broken, Done, Terms, send, unless_reset};
use crate::http::body::Framing;
use crate::http::head::After;
use crate::http::replay;
use crate::http::response::Field;
use crate::idleness::Idleness;

/// A body that was there whole, and may be sent again.
#[derive(Debug, Clone, Default)]
pub(super) struct Whole {
    pub(super) content: Bytes,
    pub(super) trailers: HeaderMap,
}

/// What of the body goes out with the request, and what comes later.
pub(super) enum Sent<'a> {
    Whole(&'a Whole),
    Rest(&'a mut Body),
}

/// Sends a request and brings back the answer.
pub(super) async fn relay(
    respond: &mut SendResponse<Bytes>,
    requests: SendRequest<Bytes>,
    terms: Terms<'_>,
    request: Request<()>,
    body: Sent<'_>,
) -> Result<Done, Broken> {
    let mut requests = requests.ready().await.map_err(|error| broken(&error))?;
    let empty = match &body {
        Sent::Whole(whole) => whole.content.is_empty() && whole.trailers.is_empty(),
        Sent::Rest(_) => false,
    };
    let sent = requests.send_request(request, empty);
    let (answer, mut stream) = sent.map_err(|error| broken(&error))?;
    drop(requests);
    let mut upload = pin!(async {
        match body {
            Sent::Whole(_) if empty => Upload::Over,
            Sent::Whole(whole) => upload_whole(&mut stream, whole).await,
            Sent::Rest(body) => upload(&mut stream, body, terms.idle).await,
        }
    });
    let mut download = pin!(download(respond, answer, terms));
    let mut uploads = true;
    std::future::poll_fn(|cx| {
        if uploads && let Poll::Ready(done) = upload.as_mut().poll(cx) {
            uploads = false;
            if matches!(done, Upload::CallerGone) {
                return Poll::Ready(Err(Broken::Cut));
            }
        }
        download.as_mut().poll(cx)
    })
    .await
}

/// Why nothing came back, or no more.
pub(super) fn broken(error: &h2::Error) -> Broken {
    let unseen = error.reason() == Some(Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR));
    if unseen {
        Broken::Unseen
    } else if error.is_library() || (error.is_go_away() && error.is_remote()) {
        Broken::NoHttp2
    } else {
        Broken::NoAnswer
    }
}

/// How the request's body ended.
enum Upload {
    /// It is whole, or the Machine takes no more; it may have answered already.
    Over,
    CallerGone,
}

async fn upload_whole(stream: &mut SendStream<Bytes>, whole: &Whole) -> Upload {
    let last = whole.trailers.is_empty();
    if send(stream, whole.content.clone(), last).await.is_ok() && !last {
        // It fails when the Machine has ended the stream, which its answer tells.
        let _sent = stream.send_trailers(whole.trailers.clone()).is_ok();
    }
    Upload::Over
}

async fn upload(stream: &mut SendStream<Bytes>, body: &mut Body, idle: &Idleness) -> Upload {
    loop {
        match std::future::poll_fn(|cx| body.poll_next(cx)).await {
            Piece::Content(piece) => {
                idle.note();
                let count = piece.len();
                let mut sending = pin!(send(stream, Bytes::from(piece), false));
                let sent = std::future::poll_fn(|cx| {
                    let sent = sending.as_mut().poll(cx);
                    if sent.is_pending() {
                        body.take_in(cx);
                    }
                    sent
                });
                if sent.await.is_err() {
                    return Upload::Over;
                }
                body.release(count);
            }
            Piece::End(trailers) => {
                let trailers = trailing(trailers);
                // As above.
                let _sent = match trailers.is_empty() {
                    true => stream.send_data(Bytes::new(), true).is_ok(),
                    false => stream.send_trailers(trailers).is_ok(),
                };
                return Upload::Over;
            }
            Piece::Broken => {
                stream.send_reset(Reason::CANCEL);
                return Upload::CallerGone;
            }
        }
    }
}

/// Those fields that may come at the end.
pub(super) fn trailing(trailers: HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(trailers.len());
    for (name, value) in &trailers {
        if answer::may_trail(name.as_str()) {
            kept.append(name, value.clone());
        }
    }
    kept
}

/// Waits for the answer and passes it on.
async fn download(
    respond: &mut SendResponse<Bytes>,
    mut answer: ResponseFuture,
    terms: Terms<'_>,
) -> Result<Done, Broken> {
    let answer = std::future::poll_fn(|cx| {
        if let Poll::Ready(answer) = std::pin::Pin::new(&mut answer).poll(cx) {
            return Poll::Ready(answer.map_err(|error| broken(&error)));
        }
        respond.poll_reset(cx).map(|_| Err(Broken::Cut))
    });
    let (parts, mut body) = answer.await?.into_parts();
    if replay::is_order(parts.status, &parts.headers) {
        let order = Box::pin(replay::take_fields(&parts.headers, &mut body));
        return Ok(Done::Replay(unless_reset(respond, order).await?, After::Keep));
    }
    terms.place.app().counts.note_answer(parts.status.as_u16());
    terms.place.note_answered();
    let mut response = Response::new(());
    *response.status_mut() = parts.status;
    *response.headers_mut() = fields(&parts.headers, parts.status.as_u16(), terms.signature);
    let ended = body.is_end_stream();
    let gzip = compressed::begin(terms, framing_of(&response, ended), &mut response);
    let mut stream = respond.send_response(response, ended).map_err(|_| Broken::Cut)?;
    if ended {
        return Ok(Done::Answered(After::Keep));
    }
    let passed = match gzip {
        None => pass(&mut stream, &mut body, terms.idle).await,
        Some(gzip) => {
            let mut body = Body::of_answer(body);
            let next = |cx: &mut Context<'_>| poll_released(&mut body, cx);
            let passed = Box::pin(compressed::pass(&mut stream, gzip, terms.idle, next)).await;
            passed.map_err(|_| Reason::INTERNAL_ERROR)
        }
    };
    match passed {
        Ok(()) => Ok(Done::Answered(After::Keep)),
        Err(reason) => {
            stream.send_reset(reason);
            Err(Broken::Cut)
        }
    }
}

/// How long the content is, as HTTP/1.1 would know it.
fn framing_of(response: &Response<()>, ended: bool) -> Framing {
    let length =
        response.headers().get(CONTENT_LENGTH).and_then(|it| it.to_str().ok()?.parse().ok());
    match length {
        _ if ended => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    }
}

/// The next of a Machine's answer, which it may follow by as much.
fn poll_released(body: &mut Body, cx: &mut Context<'_>) -> Poll<Piece> {
    let piece = body.poll_next(cx);
    if let Poll::Ready(Piece::Content(content)) = &piece {
        body.release(content.len());
    }
    piece
}

/// What of the Machine's fields the caller gets, with ours.
pub(super) fn fields(from: &HeaderMap, status: u16, signature: Signature<'_>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(from.len() + 4);
    for (name, value) in from {
        let pass = match Field::of(name.as_str()) {
            Field::ContentLength => status != 204 && !headers.contains_key(CONTENT_LENGTH),
            Field::ContentType | Field::Other => true,
            Field::TransferEncoding | Field::Connection | Field::HopByHop => false,
            Field::Replay | Field::Ours => false,
        };
        if pass {
            headers.append(name, value.clone());
        }
    }
    signature.write(&mut headers);
    headers
}

/// Passes the body on; otherwise says by what the caller's stream is to be reset.
async fn pass(
    stream: &mut SendStream<Bytes>,
    body: &mut RecvStream,
    idle: &Idleness,
) -> Result<(), Reason> {
    loop {
        let data =
            std::future::poll_fn(|cx| poll_unless_reset(cx, stream, |cx| body.poll_data(cx)));
        match data.await? {
            Some(Ok(data)) => {
                idle.note();
                let (count, last) = (data.len(), body.is_end_stream());
                send(stream, data, last).await.map_err(|_| Reason::CANCEL)?;
                if last {
                    return Ok(());
                }
                // It fails when the stream has ended meanwhile: then there is nothing to open.
                let _released = body.flow_control().release_capacity(count).is_ok();
            }
            Some(Err(error)) => return Err(error.reason().unwrap_or(Reason::INTERNAL_ERROR)),
            None => break,
        }
    }
    let trailers =
        std::future::poll_fn(|cx| poll_unless_reset(cx, stream, |cx| body.poll_trailers(cx)));
    let trailers = trailers.await?;
    let trailers = trailers.map_err(|error| error.reason().unwrap_or(Reason::INTERNAL_ERROR))?;
    let sent = match trailers.map(trailing) {
        Some(trailers) => stream.send_trailers(trailers),
        None => stream.send_data(Bytes::new(), true),
    };
    sent.map_err(|_| Reason::CANCEL)
}

fn poll_unless_reset<T>(
    cx: &mut Context<'_>,
    stream: &mut SendStream<Bytes>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<Result<T, Reason>> {
    if let Poll::Ready(done) = poll(cx) {
        return Poll::Ready(Ok(done));
    }
    stream.poll_reset(cx).map(|_| Err(Reason::CANCEL))
}
