//! Requests for Machines that speak HTTP/2 (`h2_backend`, PX-81), by callers who speak HTTP/1.1.
//!
//! Each is a stream on a connection that only this caller uses; it is kept as long as the caller's own, or until the
//! Machine sleeps. An upgrade is not offered: the request is an ordinary one there.

use std::rc::Rc;

use tokio::net::TcpStream;

use super::replayed::Issued;
use super::{After, Connection, Failure, Hop, Incoming, Scratch, Tries};
use crate::app::Place;
use crate::http::exchange::{Broken, Done};
use crate::http2::{Backend, Refusal, Shelf, Unspoken, speak};

/// Why a try failed.
enum Failed {
    /// Nothing of an answer came; the reason, if HTTP/2 has one.
    Unanswered(Option<Refusal>),
    Broken(Broken),
}

impl Connection {
    pub(super) async fn forward_on(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        hop: &Hop,
    ) -> Result<After, Failure> {
        let mut tries = Tries::new(hop.timeout());
        loop {
            let place = match hop.facts.awake_only {
                true => self.awake_place(stream, scratch, incoming, hop)?,
                false => self.any_place(stream, scratch, incoming, hop, &mut tries).await?,
            };
            let found = self.backend(stream, incoming, (hop, &place), &mut tries).await?;
            let Some((backend, used)) = found else { continue };
            let failed =
                match self.try_on(stream, scratch, incoming, (hop, &place), &backend).await? {
                    Ok(done) => {
                        place.note_answered();
                        return match done {
                            Done::Answered { caller_after, .. } => Ok(caller_after),
                            Done::Replay { order, .. } => {
                                Err(Failure::Replay(Issued::new(order, &place)))
                            }
                            // HTTP/2 has no 101.
                            Done::Switched => Err(Failure::Cut),
                        };
                    }
                    Err(failed) => failed,
                };
            backend.retire();
            let refusal = match failed {
                Failed::Unanswered(refusal) => refusal,
                Failed::Broken(broken) => return Err(Failure::from(broken)),
            };
            let unseen =
                matches!(refusal, Some(Refusal::Unseen)) && incoming.is_kept() && 0 < tries.left;
            if unseen {
                tries.left -= 1;
            } else if !tries.may_repeat(incoming, &place, used) {
                let broken = refusal.map_or(Broken::NoAnswer.to_string(), |it| it.to_string());
                return Err(Failure::Reply(502, broken));
            }
            self.recover(scratch, incoming);
            Box::pin(tries.pause(&place, stream)).await?;
        }
    }

    /// Sends the request once. Outside: it cannot be sent at all.
    async fn try_on(
        &mut self,
        stream: &mut TcpStream,
        scratch: &mut Scratch,
        incoming: &mut Incoming,
        (hop, place): (&Hop, &Place),
        backend: &Backend,
    ) -> Result<Result<Done, Failed>, Failure> {
        let head = &scratch.request[..incoming.head_len];
        let (framing, method) = (incoming.request.framing, incoming.request.method);
        let (answer, question, fault) = match speak(backend, head, framing, method).await {
            Ok(spoken) => spoken,
            Err(Unspoken::Bad(bad)) => return Err(Failure::Reply(bad.status(), bad.to_string())),
            Err(Unspoken::Broken(broken)) => return Ok(Err(Failed::Unanswered(Some(broken)))),
        };
        place.note_connected();
        scratch.answer.clear();
        let machine = ((answer, question), incoming.head_len);
        let exchange = self.exchange(stream, scratch, incoming, (place, &hop.facts), machine);
        Ok(Box::pin(exchange).await.map_err(|broken| match broken {
            Broken::NoAnswer => Failed::Unanswered(fault.take()),
            other => Failed::Broken(other),
        }))
    }

    /// The caller's connection to the place's Machine, and whether it was there already; `None`: the Machine has gone.
    async fn backend(
        &mut self,
        stream: &TcpStream,
        incoming: &Incoming,
        (hop, place): (&Hop, &Place),
        tries: &mut Tries,
    ) -> Result<Option<(Rc<Backend>, bool)>, Failure> {
        let shelf = self.shelf.get_or_insert_with(|| Box::new(Shelf::default()));
        if let Some(backend) = shelf.take(place.endpoint()) {
            return Ok(Some((backend, true)));
        }
        tries.fresh = true;
        let port = self.to.port();
        let upstream = tries.connection(hop, place, (incoming, port), stream).await?;
        let Some(upstream) = upstream else { return Ok(None) };
        let begun = Backend::begin(upstream.stream, place.endpoint().machine).await;
        let backend = begun.map_err(|_| Failure::Reply(502, Refusal::NoHttp2.to_string()))?;
        hop.app.upstreams.backends.note(&backend);
        shelf.keep(place.endpoint(), &backend);
        Ok(Some((backend, false)))
    }
}
