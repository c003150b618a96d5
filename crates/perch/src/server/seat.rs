//! Where a Machine's task is found, and where it is made anew when it is wanted.
//!
//! ```text
//!           nothing is under way, nothing waits, and nobody knows a way in
//!  Taken ──────────────────────────────────────────────────────────────────► Vacant
//!    ▲                       somebody wants a way in                           │
//!    └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Most Machines sleep, and a task with its mailboxes takes 5 kB; what is left of it takes a tenth. Ways into the mailbox
//! are handed out under the lock under which the task leaves, and it leaves only when it has the last one: what
//! somebody asks is heard, by this task or by the next.

use std::sync::{Arc, Mutex, Weak};

use perch_core::lifecycle::Event;
use tokio::sync::mpsc::error::{SendError, TrySendError};
use tokio::sync::{mpsc, oneshot, watch};

use super::history::Source;
use super::machine::{Command, Refused, Rested, Status};
use super::world::{World, lock};

/// Requests that may wait for a Machine's task; one that finds it full waits itself, unless it is the proxy's.
const MAILBOX: usize = 64;

/// A way into a Machine's mailbox. What waits there is a pointer: each mailbox keeps room for 32 from its first day on.
#[derive(Debug, Clone)]
pub(crate) struct Post(mpsc::Sender<Box<Command>>);

impl Post {
    /// Waits for a place; an error when the Machine is gone.
    pub(crate) async fn send(&self, command: Command) -> Result<(), SendError<Box<Command>>> {
        self.0.send(Box::new(command)).await
    }

    /// An error also when the mailbox is full.
    pub(crate) fn try_send(&self, command: Command) -> Result<(), TrySendError<Box<Command>>> {
        self.0.try_send(Box::new(command))
    }
}

#[cfg(test)]
impl Post {
    /// A way to nobody, and what comes there.
    pub(crate) fn of_test() -> (Self, mpsc::Receiver<Box<Command>>) {
        let (sender, receiver) = mpsc::channel(MAILBOX);
        (Self(sender), receiver)
    }
}

/// What waits for a Machine's task.
#[derive(Debug)]
pub(crate) struct Mailbox {
    commands: mpsc::Receiver<Box<Command>>,
    urgent: mpsc::Receiver<Box<Command>>,
}

impl Mailbox {
    /// The next command; `None` when nobody can send any more. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Command> {
        let command = tokio::select! {
            biased;
            Some(command) = self.urgent.recv() => Some(command),
            command = self.commands.recv() => command,
        };
        command.map(|command| *command)
    }

    /// Whether nothing waits, and nothing can come but by the seat's ways and the task's own.
    fn is_deserted(&self) -> bool {
        // In this order: who gave a way up before it was counted has sent what it had to send.
        let are_last =
            self.commands.sender_strong_count() == 2 && self.urgent.sender_strong_count() == 1;
        are_last && self.commands.is_empty() && self.urgent.is_empty()
    }
}

/// What a Machine's task works with.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) mailbox: Mailbox,
    pub(crate) post: Post,
    pub(crate) status: watch::Sender<Status>,
}

/// The ways to a task.
#[derive(Debug, Clone)]
struct Ways {
    commands: Post,
    /// Read first. The proxy has one wish for a Machine at a time, so it is never full.
    urgent: Post,
    status: watch::Receiver<Status>,
}

impl Ways {
    fn new(status: Status) -> (Self, Desk) {
        let (post, commands) = mpsc::channel(MAILBOX);
        let (urgent_post, urgent) = mpsc::channel(MAILBOX);
        let (sender, receiver) = watch::channel(status);
        let mailbox = Mailbox { commands, urgent };
        let desk = Desk { mailbox, post: Post(post.clone()), status: sender };
        (Self { commands: Post(post), urgent: Post(urgent_post), status: receiver }, desk)
    }
}

#[derive(Debug)]
enum Place {
    /// A task works here, or did until its Machine was destroyed or the server ended.
    Taken(Ways),
    Vacant(Box<Rested>),
}

/// A Machine's place.
#[derive(Debug)]
pub(crate) struct Seat {
    id: String,
    world: Weak<World>,
    place: Mutex<Place>,
}

impl Seat {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The ways to its task, which is made anew if it has left; `None` when the server ends.
    fn ways(self: &Arc<Self>) -> Option<Ways> {
        let mut place = lock(&self.place);
        let status = match &*place {
            Place::Taken(ways) => return Some(ways.clone()),
            Place::Vacant(rested) => rested.status(),
        };
        let world = self.world.upgrade().filter(|world| !world.shutdown.is_cancelled())?;
        let (ways, desk) = Ways::new(status);
        if let Place::Vacant(rested) = std::mem::replace(&mut *place, Place::Taken(ways.clone())) {
            rested.wake(world, self.clone(), desk);
        }
        Some(ways)
    }

    fn status(&self) -> Status {
        match &*lock(&self.place) {
            Place::Taken(ways) => ways.status.borrow().clone(),
            Place::Vacant(rested) => rested.status(),
        }
    }

    /// A task leaves and what is kept of it stays, if nobody is on the way to it. Else it has to go on.
    pub(crate) fn leave(
        &self,
        mailbox: &Mailbox,
        status: &watch::Sender<Status>,
        rested: impl FnOnce() -> Option<Rested>,
    ) -> bool {
        let mut place = lock(&self.place);
        if !mailbox.is_deserted() || status.receiver_count() != 1 {
            return false;
        }
        let Some(rested) = rested() else { return false };
        *place = Place::Vacant(Box::new(rested));
        true
    }
}

/// The way to a Machine's task, whether there is one now or not.
#[derive(Debug, Clone)]
pub(crate) struct Handle(Arc<Seat>);

impl Handle {
    /// To a Machine of which nothing is to be done now.
    pub(crate) fn vacant(world: &Arc<World>, id: String, rested: Rested) -> Self {
        Self::new(Arc::downgrade(world), id, Place::Vacant(Box::new(rested)))
    }

    /// To a Machine whose task is about to begin, and what that works with.
    pub(crate) fn taken(world: &Arc<World>, id: String, status: Status) -> (Self, Arc<Seat>, Desk) {
        let (ways, desk) = Ways::new(status);
        let handle = Self::new(Arc::downgrade(world), id, Place::Taken(ways));
        let seat = handle.0.clone();
        (handle, seat, desk)
    }

    fn new(world: Weak<World>, id: String, place: Place) -> Self {
        Self(Arc::new(Seat { id, world, place: Mutex::new(place) }))
    }

    pub(crate) fn status(&self) -> Status {
        self.0.status()
    }

    /// Follows the status; as long as somebody does, the Machine has a task.
    pub(crate) fn watch(&self) -> watch::Receiver<Status> {
        // When the server ends nobody tells any more.
        let nobody = || watch::channel(self.status()).1;
        self.0.ways().map_or_else(nobody, |ways| ways.status)
    }

    /// Sends a command; `false` when the Machine is gone.
    pub(crate) async fn send(&self, command: Command) -> bool {
        let Some(post) = self.0.ways().map(|ways| ways.commands) else { return false };
        post.send(command).await.is_ok()
    }

    /// Sends a command of the proxy's, before all others and without waiting for a place: whoever asks much of one
    /// Machine must not keep the proxy from waking the next. `false` when the Machine is gone, or the proxy has lost all measure.
    pub(crate) fn tell(&self, command: Command) -> bool {
        self.0.ways().is_some_and(|ways| ways.urgent.try_send(command).is_ok())
    }

    /// Adds to a Machine's events, and returns when they show it. Of one that is gone there are none.
    pub(crate) async fn note(&self, kind: &'static str, source: Source, cause: String) {
        let (reply, noted) = oneshot::channel();
        if self.send(Command::Note { kind, source, cause, reply }).await {
            noted.await.ok();
        }
    }

    /// Asks for something and waits until it is durable. `None` when the Machine is gone.
    pub(crate) async fn ask(&self, event: Event, source: Source) -> Option<Result<(), Refused>> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ask { event, source, reply }).await.then_some(())?;
        answer.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    fn note(kind: &'static str) -> Command {
        let (source, reply) = (Source::Platform, oneshot::channel().0);
        Command::Note { kind, source, cause: String::new(), reply }
    }

    fn taken() -> (Handle, Desk) {
        let (ways, desk) = Ways::new(Rested::default().status());
        (Handle::new(Weak::new(), "m".to_owned(), Place::Taken(ways)), desk)
    }

    fn leaves(handle: &Handle, desk: &Desk) -> bool {
        handle.0.leave(&desk.mailbox, &desk.status, || Some(Rested::default()))
    }

    #[tokio::test]
    async fn the_proxy_is_heard_first_and_never_waits_for_a_place() {
        let (handle, mut desk) = taken();
        while desk.post.try_send(note("asked")).is_ok() {}
        assert!(handle.tell(note("proxy")), "a place of its own");
        let first = desk.mailbox.next().await;
        assert!(matches!(first, Some(Command::Note { kind: "proxy", .. })), "{first:?}");
        let second = desk.mailbox.next().await;
        assert!(matches!(second, Some(Command::Note { kind: "asked", .. })), "{second:?}");
    }

    #[tokio::test]
    async fn who_notes_something_can_then_read_it() {
        let (handle, mut desk) = taken();
        let mut noting = std::pin::pin!(handle.note("cordon", Source::Platform, String::new()));
        let early = std::future::poll_fn(|cx| Poll::Ready(noting.as_mut().poll(cx).is_ready()));
        assert!(!early.await, "nothing is recorded yet");
        let Some(Command::Note { reply, .. }) = desk.mailbox.next().await else { panic!("none") };
        reply.send(()).expect("it waits");
        noting.await;
    }

    #[tokio::test]
    async fn a_task_leaves_only_when_nobody_can_want_anything_of_it() {
        let (handle, mut desk) = taken();
        let beside = desk.post.clone();
        assert!(!leaves(&handle, &desk), "somebody who works beside it will report");
        assert!(beside.try_send(note("reported")).is_ok());
        drop(beside);
        assert!(!leaves(&handle, &desk), "a report waits");
        assert!(desk.mailbox.next().await.is_some());
        assert!(handle.tell(note("proxy")));
        assert!(!leaves(&handle, &desk), "the proxy's wish waits");
        assert!(desk.mailbox.next().await.is_some());
        let watching = handle.watch();
        assert!(!leaves(&handle, &desk), "somebody watches");
        drop(watching);
        assert!(leaves(&handle, &desk));
        assert!(matches!(&*lock(&handle.0.place), Place::Vacant(_)));
    }
}
