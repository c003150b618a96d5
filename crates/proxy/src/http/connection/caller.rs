//! Who has sent a request that wants to go somewhere, or is sent there: what [`super::aimed`] and [`super::replayed`] need
//! to know of a connection of HTTP/1.1, and of a stream of HTTP/2.

use std::ops::Deref;
use std::rc::Rc;

use tokio::net::TcpStream;

use super::{After, Connection, Deadline, Failure, Hop, Incoming, Scratch, unless_left};
use crate::app::{App, Place};
use crate::directory::{Destination, Directory};
use crate::http::edit::Edit;

/// See the module's head.
pub(crate) trait Caller {
    /// What is known when a request was answered.
    type Answered;

    fn directory(&self) -> &Directory;

    /// Where the request was sent. Not to be kept while anything is waited for.
    fn to(&self) -> impl Deref<Target = Destination>;

    /// The request's head as we wrote it.
    fn head(&self) -> &[u8];

    fn edit_head(&mut self, edit: &Edit);

    fn replace_head(&mut self, head: Vec<u8>);

    /// Whether it offers other protocols.
    fn upgrades(&self) -> bool;

    /// Makes all that was sent of the body ready to be sent again; `false`: it is not there any more.
    fn recover(&mut self) -> bool;

    /// Runs `work` unless the caller goes away.
    async fn unless_left<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure>;

    /// A place in any Machine of the app.
    async fn place(&mut self, app: &Rc<App>, deadline: &mut Deadline) -> Result<Place, Failure>;

    /// Sends the request there, and passes the answer on.
    async fn forward(&mut self, hop: &Hop) -> Result<Self::Answered, Failure>;
}

/// A request of HTTP/1.1, with its connection.
pub(super) struct Asking<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) stream: &'a mut TcpStream,
    pub(super) scratch: &'a mut Scratch,
    pub(super) incoming: &'a mut Incoming,
}

impl Caller for Asking<'_> {
    type Answered = After;

    fn directory(&self) -> &Directory {
        &self.connection.directory
    }

    fn to(&self) -> impl Deref<Target = Destination> {
        &self.connection.to
    }

    fn head(&self) -> &[u8] {
        &self.scratch.request[..self.incoming.head_len]
    }

    fn edit_head(&mut self, edit: &Edit) {
        self.incoming.head_len = edit.apply(&mut self.scratch.request, self.incoming.head_len);
    }

    fn replace_head(&mut self, head: Vec<u8>) {
        let head_len = std::mem::replace(&mut self.incoming.head_len, head.len());
        self.scratch.request.splice(..head_len, head);
    }

    fn upgrades(&self) -> bool {
        self.incoming.request.upgrade
    }

    fn recover(&mut self) -> bool {
        self.connection.recover(self.scratch, self.incoming)
    }

    async fn unless_left<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Failure> {
        unless_left(self.stream, work).await
    }

    async fn place(&mut self, app: &Rc<App>, deadline: &mut Deadline) -> Result<Place, Failure> {
        self.connection.place(self.stream, self.scratch, app, deadline).await
    }

    async fn forward(&mut self, hop: &Hop) -> Result<After, Failure> {
        self.connection.forward(self.stream, self.scratch, self.incoming, hop).await
    }
}
