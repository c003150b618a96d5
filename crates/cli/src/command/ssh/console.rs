//! One console: the caller's terminal or pipes at one end, the frames of the server at the other.

use super::Context;
use crate::console::{Console, Output};
use crate::env;
use crate::failure::{Failure, Outcome};
use perch_api::client::ProxyStream;
use perch_api::console::{FRAME_BYTES_MAX, Frame};
use perch_api::wire::ConsoleInput;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::fs::File;
use std::io::{self, Read};
use tokio::io::{AsyncRead, AsyncWriteExt, WriteHalf};
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Reads that wait for the connection; a reader that is faster waits itself.
const INPUTS_WAITING: usize = 4;
/// Frames that wait for who reads our output; the program waits when there are more.
const OUTPUTS_WAITING: usize = 4;
/// How much is read at once.
const INPUT_BYTES: usize = FRAME_BYTES_MAX;
/// Lines and columns when the terminal does not tell.
const SIZE: (u16, u16) = (24, 80);

/// What console is wanted.
pub(super) struct Wanted {
    pub(super) app: String,
    pub(super) machine: String,
    pub(super) cmd: String,
    pub(super) user: String,
    pub(super) terminal: bool,
    /// Said while the connection is made.
    pub(super) greeting: Option<String>,
}

/// Runs it to the program's end, whose exit code becomes ours.
pub(super) async fn run(context: &Context<'_>, wanted: Wanted) -> Outcome {
    let _until_ended = context.interrupt.hold();
    let (console, local) =
        (context.console, context.console.terminal().filter(|_| wanted.terminal));
    let input = ConsoleInput {
        cmd: wanted.cmd,
        user: wanted.user,
        terminal: wanted.terminal.then(|| local.map_or(SIZE, size)),
        term: context.env.get(env::TERM).unwrap_or_default().to_owned(),
    };
    let opened = async {
        let _shown = wanted.greeting.as_ref().map(|text| console.waiting(text.clone()));
        if let Some(text) = wanted.greeting.as_ref().filter(|_| !console.is_live()) {
            console.note(text);
        }
        Ok(context.client.open_console(&wanted.app, &wanted.machine, &input).await?)
    };
    let stream = context.interrupt.cut(opened).await?;
    if let Some(text) = wanted.greeting.as_ref().filter(|_| console.is_live()) {
        console.note(format!("{text} complete"));
    }
    // From here on every key is the program's, Ctrl-C too.
    let raw = local.map(Raw::begin).transpose()?;
    let code = tokio::select! {
        code = carry(console, stream, local) => code,
        code = ending_signal() => code,
        () = context.interrupt.pressed() => Err(Failure::interrupted()),
    };
    drop(raw);
    match code? {
        0 => Ok(()),
        code => Err(Failure::elsewhere(u8::try_from(code).unwrap_or(u8::MAX))),
    }
}

fn size(terminal: &File) -> (u16, u16) {
    let known = tcgetwinsize(terminal).ok().filter(|it| 0 < it.ws_row && 0 < it.ws_col);
    known.map_or(SIZE, |it| (it.ws_row, it.ws_col))
}

/// A terminal that passes every key on; dropped, it is as before.
struct Raw<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Raw<'a> {
    fn begin(terminal: &'a File) -> Outcome<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Raw<'_> {
    fn drop(&mut self) {
        // What was written needs no draining, and a terminal that is stopped would never drain. One that is gone needs
        // nothing any more.
        tcsetattr(self.terminal, OptionalActions::Now, &self.before).unwrap_or_default();
    }
}

/// Resolves with the exit code of who is ended by a signal, once there is one: so the terminal comes back first.
async fn ending_signal() -> Outcome<i32> {
    let (mut hangup, mut terminate) =
        (signal(SignalKind::hangup())?, signal(SignalKind::terminate())?);
    Ok(tokio::select! {
        _ = hangup.recv() => 128 + SignalKind::hangup().as_raw_value(),
        _ = terminate.recv() => 128 + SignalKind::terminate().as_raw_value(),
    })
}

/// Carries both ways until the program has ended: its exit code.
async fn carry(console: &Console, stream: ProxyStream, terminal: Option<&File>) -> Outcome<i32> {
    let (from, to) = tokio::io::split(stream);
    let resized = terminal.map(|_| signal(SignalKind::window_change())).transpose()?;
    let (input, _until_dropped) = read_input(console, terminal)?;
    tokio::select! {
        code = show(console, from) => code,
        Err(failure) = send(to, input, resized, terminal) => Err(failure),
    }
}

/// Shows what the program says, until its end, when all of it is written.
async fn show(console: &Console, from: impl AsyncRead + Unpin) -> Outcome<i32> {
    let (frames, written) = write_output(console);
    let ended = pass_on(from, frames).await;
    let (output, result) = written.await?;
    console.give_output(output, result);
    if console.is_closed() {
        return Err(Failure::elsewhere(1));
    }
    ended
}

async fn pass_on(mut from: impl AsyncRead + Unpin, to: mpsc::Sender<Frame>) -> Outcome<i32> {
    loop {
        let frame = tokio::select! {
            frame = Frame::read(&mut from) => frame?,
            () = to.closed() => return Err(Failure::elsewhere(1)),
        };
        match frame {
            Some(frame @ (Frame::Output(_) | Frame::Complaint(_))) => {
                if to.send(frame).await.is_err() {
                    return Err(Failure::elsewhere(1));
                }
            }
            Some(Frame::Ended(code)) => return Ok(code),
            Some(_) => {}
            None => {
                return Err(Failure::new("the server ended the console")
                    .hint("It was stopped or restarted; its log says why"));
            }
        }
    }
}

/// What the thread that writes leaves behind.
type Written = (Output, io::Result<()>);

/// Writes on a thread of its own: a reader that stalls must not keep a signal from being heard. The thread ends with the
/// sender, or when there is no reader; one that never comes to that ends with the process.
fn write_output(console: &Console) -> (mpsc::Sender<Frame>, oneshot::Receiver<Written>) {
    let (sender, mut receiver) = mpsc::channel(OUTPUTS_WAITING);
    let (done, written) = oneshot::channel();
    let mut output = console.take_output();
    std::thread::spawn(move || {
        let mut result = Ok(());
        while result.is_ok()
            && let Some(frame) = receiver.blocking_recv()
        {
            result = match frame {
                Frame::Output(bytes) => output.output_bytes(&bytes),
                Frame::Complaint(bytes) => output.complaint_bytes(&bytes),
                _ => Ok(()),
            };
        }
        drop(receiver);
        // Nobody waits for it when a signal has come.
        done.send((output, result)).ok();
    });
    (sender, written)
}

/// Sends what is typed, and the terminal's size when it changes. Does not end while the program may.
async fn send(
    mut to: WriteHalf<ProxyStream>,
    mut input: mpsc::Receiver<Vec<u8>>,
    mut resized: Option<Signal>,
    terminal: Option<&File>,
) -> Outcome {
    let mut is_open = true;
    loop {
        let frame = tokio::select! {
            bytes = input.recv(), if is_open => match bytes {
                Some(bytes) => Frame::Input(bytes),
                None => {
                    is_open = false;
                    Frame::InputEnd
                }
            },
            () = next(&mut resized) => {
                let (rows, columns) = terminal.map_or(SIZE, size);
                Frame::Resize { rows, columns }
            }
        };
        if to.write_all(&frame.packed()).await.is_err() || to.flush().await.is_err() {
            // The other direction tells how it ended.
            std::future::pending::<()>().await;
        }
    }
}

async fn next(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Reads the input on a thread of its own, since a read cannot be taken back. That of a terminal ends when the second
/// value is dropped; what else there is to read from ends with the process.
fn read_input(
    console: &Console,
    terminal: Option<&File>,
) -> Outcome<(mpsc::Receiver<Vec<u8>>, Option<pipe::Sender>)> {
    let (sender, receiver) = mpsc::channel(INPUTS_WAITING);
    let Some(terminal) = terminal else {
        let mut input = console.take_input();
        std::thread::spawn(move || {
            let mut buffer = vec![0; INPUT_BYTES];
            while let Ok(length @ 1..) = input.read(&mut buffer)
                && sender.blocking_send(buffer[..length].to_vec()).is_ok()
            {}
        });
        return Ok((receiver, None));
    };
    let mut terminal = terminal.try_clone()?;
    let (until, told) = pipe::pipe()?;
    let told = told.into_blocking_fd()?;
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT_BYTES];
        loop {
            let mut fds =
                [PollFd::new(&terminal, PollFlags::IN), PollFd::new(&told, PollFlags::IN)];
            let polled = poll(&mut fds, None);
            if !fds[1].revents().is_empty() {
                return;
            }
            if polled.is_err() || fds[0].revents().is_empty() {
                continue;
            }
            match terminal.read(&mut buffer) {
                Ok(length @ 1..) if sender.blocking_send(buffer[..length].to_vec()).is_ok() => {}
                _ => return,
            }
        }
    });
    Ok((receiver, Some(until)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::tests::captured;
    use crate::failure;
    use tokio::io::duplex;

    /// What `show` answers when the server says these frames and then keeps the connection.
    async fn shown(console: &Console, frames: &[Frame]) -> Outcome<i32> {
        let (mut server, from) = duplex(FRAME_BYTES_MAX);
        tokio::select! {
            code = show(console, from) => code,
            never = async {
                for frame in frames {
                    server.write_all(&frame.packed()).await.expect("it is read");
                }
                std::future::pending().await
            } => never,
        }
    }

    #[test]
    fn a_reader_that_stalls_does_not_keep_a_signal_from_ending_it() {
        let (_unread, out) = io::pipe().expect("a pipe");
        let console = Console::of_streams(Box::new(out), Box::new(io::sink()));
        let (mut server, from) = duplex(FRAME_BYTES_MAX);
        let ended = failure::runtime().expect("a runtime").block_on(async {
            tokio::select! {
                // First, so that the signal is awaited when it comes.
                biased;
                code = ending_signal() => code,
                code = show(&console, from) => code,
                never = async {
                    // More than a pipe takes, and all read: the next thing that happens is the signal.
                    let frame = Frame::Output(vec![b'y'; FRAME_BYTES_MAX]).packed();
                    for _ in 0..2 + (64 << 10) / FRAME_BYTES_MAX {
                        server.write_all(&frame).await.expect("it is read");
                    }
                    let own = rustix::process::getpid();
                    rustix::process::kill_process(own, rustix::process::Signal::TERM).expect("ours");
                    std::future::pending().await
                } => never,
            }
        });
        assert_eq!(ended.expect("a code"), 128 + 15);
    }

    #[test]
    fn a_reader_that_has_gone_ends_it_though_the_program_is_silent_from_then_on() {
        let (gone, out) = io::pipe().expect("a pipe");
        drop(gone);
        let console = Console::of_streams(Box::new(out), Box::new(io::sink()));
        let said = [Frame::Output(b"x".to_vec())];
        let ended = failure::runtime().expect("a runtime").block_on(shown(&console, &said));
        assert!(ended.is_err() && console.is_closed());
    }

    #[test]
    fn all_that_was_said_is_written_when_it_ends_and_the_console_prints_again() {
        let (console, out) = captured();
        let line = || Frame::Output(b"a line\n".to_vec());
        let mut said: Vec<_> = (0..100).map(|_| line()).collect();
        said.extend([Frame::Complaint(b"no".to_vec()), Frame::Alive, Frame::Ended(7)]);
        let ended = failure::runtime().expect("a runtime").block_on(shown(&console, &said));
        assert_eq!(ended.expect("a code"), 7);
        console.line("the end");
        assert_eq!(out.text(), "a line\n".repeat(100) + "the end\n");
    }
}
