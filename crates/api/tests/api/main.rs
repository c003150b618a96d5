//! The server and the client of the API against each other and against raw bytes, over a backend in
//! memory.

mod access;
mod bad;
mod calls;
mod memory;
mod push;

use std::path::PathBuf;
use std::sync::Arc;

use memory::Memory;
use perch_api::wire::{CreateApp, LaunchInput, Machine, MachineConfig};
use perch_api::{Client, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A server on a socket of its own; ends when dropped.
struct Server {
    backend: Arc<Memory>,
    client: Client,
    socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).expect("socket");
        let backend = Arc::new(Memory::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let task = tokio::spawn(serve(listener, Arc::clone(&backend), shutdown));
        let client = Client::unix(&socket);
        Self { backend, client, socket, stop: Some(stop), task, _dir: dir }
    }

    /// A server with an app `web`.
    async fn with_app() -> Self {
        let server = Self::start();
        let input = CreateApp { name: "web".to_owned(), ..CreateApp::default() };
        server.client.create_app(&input).await.expect("app");
        server
    }

    /// A server with an app `web` and a Machine in it.
    async fn with_machine() -> (Self, Machine) {
        let server = Self::with_app().await;
        let input = LaunchInput::new(config());
        let machine = server.client.create_machine("web", &input).await.expect("machine");
        (server, machine)
    }

    /// Sends bytes as they are and reads everything until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).await.expect("connection");
        stream.write_all(request.as_bytes()).await.expect("write");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("read");
        String::from_utf8(answer).expect("text")
    }

    /// Sends a request with a body, asking to close afterwards.
    async fn request(&self, line: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}"
        );
        self.raw(&format!("{head}\r\n{body}")).await
    }

    fn seen(&self) -> String {
        self.backend.state().seen.last().cloned().unwrap_or_default()
    }
}

fn config() -> MachineConfig {
    let value = json!({"zeta": null, "image": "hello", "metadata": {"role": "a"}, "guest": null});
    serde_json::from_value(value).expect("config")
}
