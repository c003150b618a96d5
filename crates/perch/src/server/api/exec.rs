//! Programs in started Machines, beside their own: `exec`, and consoles.
//!
//! Neither is load (AS-27), and neither wakes anything: what is asleep is refused with the way to start it. A Machine may
//! go to sleep meanwhile; frozen, its console goes on where it was with the next request that wakes it, and stopped, it
//! ends the console with everything else.

use std::sync::Arc;
use std::time::Duration;

use perch_api::console::{FRAME_BYTES_MAX, Frame};
use perch_api::server::{MachineTarget, Peer};
use perch_api::wire::{ApiError, ConsoleInput, ExecAnswer, ExecInput, MachineState};
use perch_machine::{ExecError, ExecRequest, Machine, Running, Secrets, Streams, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, timeout};

use crate::server::images::chain;
use crate::server::machine::Command;
use crate::server::secrets;
use crate::server::world::World;

/// How long a program may take: if nothing is said, and at most.
const TIMEOUT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// How much of each output is kept for an answer; the rest is read and dropped.
const OUTPUT_BYTES_MAX: usize = 1024 * 1024;
/// After a program's end, what others of its kind write is waited for no longer than this.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_millis(100);
/// How often a silent console says that it lives; a caller that is gone is noticed then at the latest.
const ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// What a console's connection holds of each direction: one frame.
const BUFFER_BYTES: usize = FRAME_BYTES_MAX;
/// Input that means its end, for a program at a terminal.
const END_OF_TRANSMISSION: &[u8] = b"\x04";
/// The terminal's kind where the caller does not know its own.
const TERM: &str = "xterm";

/// Runs a program to its end.
pub(crate) async fn exec(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: ExecInput,
) -> Result<ExecAnswer, ApiError> {
    if !input.container.is_empty() {
        return Err(ApiError::invalid("machines here have no containers"));
    }
    let request = ExecRequest { argv: input.argv()?, user: None, terminal: None, env: Vec::new() };
    let (machine, secrets) = started(&world, &target).await?;
    tracing::info!(machine = target.id, by = %peer, program = request.argv[0], "exec");
    let limit = match Duration::from_secs(input.timeout) {
        Duration::ZERO => TIMEOUT.0,
        asked => asked.min(TIMEOUT.1),
    };
    let work = async {
        match machine.exec(&request, &secrets).await {
            Ok(running) => finish(running, input.stdin.into_bytes()).await,
            Err(ExecError::Program { code, reason }) => Ok(ExecAnswer {
                exit_code: i32::from(code),
                stderr: format!("{reason}\n"),
                ..ExecAnswer::default()
            }),
            Err(error) => Err(refused(&target, &error)),
        }
    };
    // Dropped, the program is hung up, and killed if it stays.
    timeout(limit, work).await.unwrap_or_else(|_| {
        let (program, seconds) = (&request.argv[0], limit.as_secs());
        Err(ApiError::timeout(format!("{program:?} did not end within {seconds} s and was killed")))
    })
}

/// The run of a Machine that is started, and what its program has as secrets.
async fn started(
    world: &Arc<World>,
    target: &MachineTarget,
) -> Result<(Arc<Machine>, Secrets), ApiError> {
    let sealed = {
        let catalog = world.keeper.read();
        secrets::of_machine(&catalog, catalog.machine(&target.app, &target.id)?)
    };
    let gone = || ApiError::not_found(format!("machine not found: {}", target.id));
    let handle = world.handle(&target.id).ok_or_else(gone)?;
    let state = handle.status().state;
    if state != MachineState::Started {
        return Err(not_started(target, state.as_str()));
    }
    let (reply, answer) = oneshot::channel();
    handle.send(Command::Run { reply }).await;
    let machine = answer.await.ok().flatten();
    let machine = machine.ok_or_else(|| not_started(target, "ending"))?;
    let opener = world.clone();
    let opened = tokio::task::spawn_blocking(move || secrets::open(&opener.vault, &sealed)).await;
    let opened = opened.map_err(|error| ApiError::internal(error.to_string()))?;
    Ok((machine, opened.map_err(|error| secrets::refused(&error))?))
}

fn not_started(target: &MachineTarget, state: &str) -> ApiError {
    let id = &target.id;
    ApiError::precondition(format!(
        "machine {id} is {state}, and a program can join only a started one; start it with `fly machine start {id}`"
    ))
}

fn refused(target: &MachineTarget, error: &ExecError) -> ApiError {
    let id = &target.id;
    match error {
        ExecError::NotRunning => not_started(target, "ending"),
        ExecError::Full => ApiError::precondition(format!("machine {id}: {error}")),
        ExecError::NoShell => ApiError::invalid(format!(
            "the image of machine {id} has no shell; name a program that it has, as `fly ssh console -C PROGRAM` does"
        )),
        ExecError::User(_) | ExecError::Bad(_) | ExecError::Program { .. } => {
            ApiError::invalid(error.to_string())
        }
        ExecError::Host(_) => ApiError::internal(chain(error)),
    }
}

/// Feeds a program and reads it to its end.
async fn finish(running: Running, input: Vec<u8>) -> Result<ExecAnswer, ApiError> {
    let Running { streams, mut control } = running;
    let Streams::Pipes { stdin, mut stdout, mut stderr } = streams else {
        return Err(ApiError::internal("a terminal was made that nobody asked for"));
    };
    let (mut out, mut err) = (Kept::default(), Kept::default());
    let fed = feed(stdin, input);
    let read = async { tokio::join!(out.read(&mut stdout), err.read(&mut stderr)) };
    let ended = async {
        tokio::pin!(fed, read);
        let (mut is_fed, mut is_read) = (false, false);
        loop {
            tokio::select! {
                ended = control.ended() => break (ended, is_read),
                () = &mut fed, if !is_fed => is_fed = true,
                _ = &mut read, if !is_read => is_read = true,
            }
        }
    };
    let (ended, is_read) = ended.await;
    let (exit_code, signal) = ended.map_err(|error| ApiError::internal(error.to_string()))?;
    if !is_read {
        // What it left in the pipes is there; a descendant in the background may keep them open for ever.
        let rest = async { tokio::join!(out.read(&mut stdout), err.read(&mut stderr)) };
        timeout(LAST_WORDS_TIMEOUT, rest).await.ok();
    }
    Ok(ExecAnswer {
        exit_code,
        exit_signal: signal.unwrap_or(0),
        stdout: out.text("standard output"),
        stderr: err.text("standard error"),
    })
}

/// A program need not read what it is given.
async fn feed(mut stdin: Sender, input: Vec<u8>) {
    if let Err(error) = stdin.write_all(&input).await {
        tracing::debug!(%error, "a program did not read its input");
    }
}

/// What is kept of an output.
#[derive(Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Kept {
    /// Reads to the end. May be cancelled and called again.
    async fn read(&mut self, pipe: &mut Receiver) {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
            let room = (OUTPUT_BYTES_MAX - self.bytes.len()).min(length);
            self.bytes.extend_from_slice(&buffer[..room]);
            self.is_cut |= room < length;
        }
    }

    fn text(self, name: &str) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.is_cut {
            text.push_str(&format!(
                "\n[{name} was cut here, after {OUTPUT_BYTES_MAX} bytes; `fly ssh console -C` shows all]\n"
            ));
        }
        text
    }
}

/// Begins a console.
pub(crate) async fn console(
    world: Arc<World>,
    peer: Peer,
    target: MachineTarget,
    input: ConsoleInput,
) -> Result<DuplexStream, ApiError> {
    let term = if input.term.is_empty() { TERM } else { &input.term };
    let has_terminal = input.terminal.is_some();
    let request = ExecRequest {
        argv: input.argv()?,
        user: Some(input.user.clone()).filter(|user| !user.is_empty()),
        terminal: input.terminal.map(|(rows, columns)| TerminalSize { rows, columns }),
        env: has_terminal.then(|| ("TERM".to_owned(), term.to_owned())).into_iter().collect(),
    };
    let (machine, secrets) = started(&world, &target).await?;
    let running = machine.exec(&request, &secrets).await;
    let running = running.map_err(|error| refused(&target, &error))?;
    tracing::info!(machine = target.id, by = %peer, program = request.argv.first(), "console begins");
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    world.tracker.spawn(async move {
        attend(running, near).await;
        tracing::info!(machine = target.id, by = %peer, "console ends");
    });
    Ok(far)
}

/// Carries frames until the program has ended or its caller has gone; then it is hung up.
async fn attend(running: Running, stream: DuplexStream) {
    let (from, to) = tokio::io::split(stream);
    let Running { streams, control } = running;
    match streams {
        Streams::Terminal(terminal) => {
            let keyboard = Keyboard::Terminal(terminal.clone());
            let screen = Screen { to, sources: Sources::Terminal(terminal), control };
            tokio::select! { () = type_in(keyboard, from) => {}, () = screen.show() => {} }
        }
        Streams::Pipes { stdin, stdout, stderr } => {
            let keyboard = Keyboard::Pipe(Some(stdin));
            let sources = Sources::Pipes { stdout: Some(stdout), stderr: Some(stderr) };
            let screen = Screen { to, sources, control };
            tokio::select! { () = type_in(keyboard, from) => {}, () = screen.show() => {} }
        }
    }
}

/// Where a console's input goes.
enum Keyboard {
    Terminal(Arc<perch_machine::Terminal>),
    /// `None` after its end.
    Pipe(Option<Sender>),
}

impl Keyboard {
    async fn take(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Terminal(terminal) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let written = terminal.write(rest).await?;
                    rest = &rest[written..];
                }
                Ok(())
            }
            Self::Pipe(Some(stdin)) => stdin.write_all(bytes).await,
            Self::Pipe(None) => Ok(()),
        }
    }
}

/// Until the caller has gone, or says what nobody understands.
async fn type_in(mut keyboard: Keyboard, mut from: ReadHalf<DuplexStream>) {
    while let Ok(Some(frame)) = Frame::read(&mut from).await {
        let done = match (frame, &mut keyboard) {
            (Frame::Input(bytes), keyboard) => keyboard.take(&bytes).await,
            (Frame::InputEnd, Keyboard::Pipe(stdin)) => {
                *stdin = None;
                Ok(())
            }
            (Frame::InputEnd, keyboard) => keyboard.take(END_OF_TRANSMISSION).await,
            (Frame::Resize { rows, columns }, Keyboard::Terminal(terminal)) => {
                terminal.resize(TerminalSize { rows, columns })
            }
            _ => Ok(()),
        };
        if let Err(error) = done {
            // It ends, or reads no more; what it still says is shown.
            tracing::debug!(%error, "a program takes no input");
        }
    }
}

/// Where a console's output comes from; `None` where it has ended.
enum Sources {
    Terminal(Arc<perch_machine::Terminal>),
    Ended,
    Pipes { stdout: Option<Receiver>, stderr: Option<Receiver> },
}

impl Sources {
    /// The next output; `None` when there will be none. May be cancelled.
    async fn next(&mut self, buffer: &mut (Vec<u8>, Vec<u8>)) -> Option<Frame> {
        loop {
            let (out, err) = (&mut buffer.0, &mut buffer.1);
            match self {
                Self::Ended => return None,
                Self::Terminal(terminal) => match terminal.read(out).await {
                    Ok(length @ 1..) => return Some(Frame::Output(out[..length].to_vec())),
                    Ok(_) | Err(_) => *self = Self::Ended,
                },
                Self::Pipes { stdout: None, stderr: None } => *self = Self::Ended,
                Self::Pipes { stdout, stderr } => tokio::select! {
                    read = read_some(stdout, out), if stdout.is_some() => {
                        if let Some(bytes) = read { return Some(Frame::Output(bytes)) }
                    }
                    read = read_some(stderr, err), if stderr.is_some() => {
                        if let Some(bytes) = read { return Some(Frame::Complaint(bytes)) }
                    }
                },
            }
        }
    }
}

/// Some bytes of a pipe, which is dropped at its end.
async fn read_some(pipe: &mut Option<Receiver>, buffer: &mut [u8]) -> Option<Vec<u8>> {
    match pipe.as_mut()?.read(buffer).await {
        Ok(length @ 1..) => Some(buffer[..length].to_vec()),
        Ok(_) | Err(_) => {
            *pipe = None;
            None
        }
    }
}

/// The way of a console's output to its caller.
struct Screen {
    to: WriteHalf<DuplexStream>,
    sources: Sources,
    control: perch_machine::exec::Control,
}

impl Screen {
    /// Until the program's end is told, or nobody is there to hear it. A caller that reads slowly is waited for, and the
    /// program with it: its pipes and terminal are full then.
    async fn show(mut self) {
        let mut buffer = (vec![0; FRAME_BYTES_MAX], vec![0; FRAME_BYTES_MAX]);
        let mut alive = tokio::time::interval(ALIVE_INTERVAL);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_silent, mut code) = (false, None);
        while !(is_silent && code.is_some()) {
            let frame = tokio::select! {
                biased;
                frame = self.sources.next(&mut buffer), if !is_silent => {
                    is_silent = frame.is_none();
                    frame
                }
                () = tokio::time::sleep(LAST_WORDS_TIMEOUT), if code.is_some() => {
                    is_silent = true;
                    None
                }
                ended = self.control.ended(), if code.is_none() => {
                    code = Some(ended.map_or(255, |(code, _)| code));
                    None
                }
                _ = alive.tick() => Some(Frame::Alive),
            };
            let Some(frame) = frame else { continue };
            if self.to.write_all(&frame.packed()).await.is_err() {
                return;
            }
        }
        let last = Frame::Ended(code.unwrap_or(255)).packed();
        if let Err(error) = self.to.write_all(&last).await {
            tracing::debug!(%error, "nobody heard how a console ended");
        }
        // Read to the end before the connection goes.
        self.to.shutdown().await.ok();
    }
}
