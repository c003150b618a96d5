//! Clients as Debian has them: the first request of each wakes a Machine that is stopped and one that is suspended, and none of them
//! notices. Those of HTTP/2 are in `http2`.

use std::fs;

use anyhow::{Result, ensure};
use perch_testkit::{
    Host, Output, Postgres, postgres_image, postgres_program, python_image, redis_image, wait_until,
};

use crate::depths::{Talk, check_talk, each_depth};
use crate::stage::{SOON, hello_image, one_machine_of, shell_image};

/// Of the program that serves HTTP on this port.
pub(crate) fn web_service(port: u16, autostop: &str) -> String {
    format!(
        "[http_service]\n  internal_port = {port}\n  force_https = false\n  \
         auto_stop_machines = '{autostop}'\n  auto_start_machines = true\n  \
         min_machines_running = 0\n  processes = ['app']\n"
    )
}

fn tcp_service(port: u16, autostop: &str) -> String {
    format!(
        "[[vm]]\n  memory = '1gb'\n[[services]]\n  protocol = 'tcp'\n  internal_port = {port}\n  \
         auto_stop_machines = '{autostop}'\n  auto_start_machines = true\n  \
         min_machines_running = 0\n  ports = [{{ port = {port} }}]\n"
    )
}

/// The example app.
pub(crate) fn hello(host: &Host, app: &str, autostop: &str) -> Result<String> {
    one_machine_of(host, app, &hello_image(host)?, &web_service(8081, autostop))
}

/// What succeeds without a word on standard error.
fn quiet(output: Output) -> Result<String> {
    ensure!(output.stderr.is_empty(), "it complains: {output}");
    output.ok()
}

#[test]
fn curl_wakes_with_a_body_and_asks_again_on_the_same_connection() {
    each_depth("curl", &hello, |host, _, address| {
        let body = host.dir().join("body");
        fs::write(&body, vec![b'x'; 200_000])?;
        let (body, url) = (format!("@{}", body.display()), format!("http://[{address}]/headers"));
        let told = "\n%{http_code} %{num_connects}|%header{perch-wake}|\n";
        let first = ["-gsSf", "--data-binary", &body, "-w", told, &url];
        let second = ["--next", "-gsSf", "-w", told, &url];
        let said = quiet(host.run("curl", &[&first[..], &second].concat())?)?;
        ensure!(said.contains("POST /headers with 200000 bytes"), "{said}");
        let lines: Vec<&str> = said.lines().filter(|line| line.ends_with('|')).collect();
        ensure!(matches!(lines[..], [one, _] if one.contains(";dur=")), "{said}");
        ensure!(lines[0].starts_with("200 1|") && lines[1] == "200 0||", "{said}");
        Ok(())
    });
}

#[test]
fn wrk_counts_no_error_from_its_first_request_on() {
    each_depth("wrk", &hello, |host, _, address| {
        let url = format!("http://[{address}]/");
        let args = ["-t1", "-c8", "-d1s", "--timeout", "30s", &url];
        let said = quiet(host.run("wrk", &args)?)?;
        ensure!(said.contains("Requests/sec:") && !said.contains(" 0 requests in"), "{said}");
        ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        Ok(())
    });
}

/// Its page is complete only with the script, and what that fetches.
const SITE: &str = "mkdir -p /www; cd /www
echo '<html><head><script src=\"/part.js\"></script></head><body><p id=p>the page</p></body></html>' > index.html
echo 'fetch(\"/more.txt\").then(a => a.text()).then(t => document.getElementById(\"p\").textContent += \" the script \" + t)' > part.js
echo 'the fetched' > more.txt
exec busybox httpd -f -p [::]:8080 -h /www";

#[test]
fn a_browser_wakes_with_a_page_and_loads_what_belongs_to_it() {
    let site = |host: &Host, app: &str, autostop: &str| {
        let image = shell_image(host, app, SITE)?;
        one_machine_of(host, app, &image, &web_service(8080, autostop))
    };
    each_depth("browser", &site, |host, _, address| {
        let profile = tempfile::tempdir_in(host.dir())?;
        let (profile, url) = (
            format!("--user-data-dir={}", profile.path().display()),
            format!("http://[{address}]/"),
        );
        // Root has no sandbox there; what waits for the network does not use up the budget.
        let how = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"];
        let what = ["--virtual-time-budget=5000", "--dump-dom", &profile, &url];
        let said = host.run("chromium-headless-shell", &[&how[..], &what].concat())?;
        said.says(&["the page the script the fetched"])?;
        said.ok().map(drop)
    });
}

/// Says again what it reads there, line by line, on one WebSocket.
const WEBSOCKET: &str = "\
import asyncio, sys, websockets
async def main():
    loop = asyncio.get_running_loop()
    async with websockets.connect(sys.argv[1], ping_interval=0.5, open_timeout=30) as socket:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await socket.send(line.strip())
            print(await socket.recv(), flush=True)
asyncio.run(main())
";

fn talk_by_websocket(host: &Host, address: &str) -> Result<Talk> {
    let script = host.dir().join("talk.py");
    fs::write(&script, WEBSOCKET)?;
    let url = format!("ws://[{address}]/ws");
    Talk::start(host, "/usr/bin/python3", &[&script.to_string_lossy(), &url])
}

#[test]
fn a_websocket_wakes_and_goes_on_over_the_sleeps_of_its_machine() {
    let live = |host: &Host, app: &str, autostop: &str| {
        let run = "[processes]\n  app = 'python3 -m uvicorn --host 0.0.0.0 --port 8080 app:asgi'\n";
        let sections = format!("{}{run}", web_service(8080, autostop));
        one_machine_of(host, app, &python_image()?, &sections)
    };
    each_depth("socket", &live, |host, app, address| {
        check_talk(host, app, talk_by_websocket(host, address)?, "hello")
    });
}

/// PostgreSQL whose port opens when it serves; it is asked once, so that it does not fall asleep before.
fn database(host: &Host, app: &str, autostop: &str) -> Result<String> {
    let late = "[env]\n  OPENS_LATE = '1'\n[mounts]\n  source = 'data'\n  \
                destination = '/var/lib/postgresql/data'\n";
    let sections = format!("{late}{}", tcp_service(5432, autostop));
    let address = one_machine_of(host, app, &postgres_image()?, &sections)?;
    let to = format!("[{address}]:5432").parse()?;
    wait_until("its first answer", SOON, || {
        host.inside(|| Postgres::connect(to, SOON)?.query("select 1")).map(Some)
    })?;
    Ok(address)
}

/// A program of PostgreSQL's clients as the role of the database.
fn with_role<'a>(address: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    [args, &["-h", address, "-U", "postgres", "postgres"]].concat()
}

const PSQL: [&str; 6] = ["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"];

#[test]
fn psql_wakes_a_database_and_goes_on_over_its_sleeps() {
    let psql = postgres_program("psql").map(|path| path.to_string_lossy().into_owned());
    let psql = psql.unwrap_or_default();
    each_depth("psql", &database, |host, app, address| {
        let mut talk = Talk::start(host, &psql, &with_role(address, &PSQL))?;
        let said = talk.ask("create temporary table own as select 42 as n; select n from own;")?;
        ensure!(said == "42", "{said}");
        // A temporary table is there for its own connection only.
        check_talk(host, app, talk, "select pg_backend_pid() || ' ' || n from own;")
    });
}

#[test]
fn pgbench_wakes_a_database_and_fails_no_transaction() {
    let pgbench = postgres_program("pgbench").map(|path| path.to_string_lossy().into_owned());
    let pgbench = pgbench.unwrap_or_default();
    let run = |host: &Host, address: &str, args: &[&str]| {
        let output = host.run(&pgbench, &with_role(address, args))?;
        let clean = !["ERROR", "FATAL", "error:"].iter().any(|it| output.to_string().contains(it));
        ensure!(clean, "it complains: {output}");
        output.ok()
    };
    let with_tables = |host: &Host, app: &str, autostop: &str| {
        let address = database(host, app, autostop)?;
        run(host, &address, &["-i", "-q", "-s", "1"])?;
        Ok(address)
    };
    each_depth("pgbench", &with_tables, |host, _, address| {
        let said = run(host, address, &["-n", "-c", "4", "-t", "25"])?;
        ensure!(said.contains("number of failed transactions: 0 "), "{said}");
        ensure!(said.contains("actually processed: 100/100"), "{said}");
        Ok(())
    });
}

fn cache(host: &Host, app: &str, autostop: &str) -> Result<String> {
    one_machine_of(host, app, &redis_image()?, &tcp_service(6379, autostop))
}

#[test]
fn redis_cli_wakes_a_cache_and_goes_on_over_its_sleeps() {
    each_depth("redis", &cache, |host, app, address| {
        // Another connection would have another number.
        check_talk(host, app, Talk::start(host, "redis-cli", &["-h", address])?, "CLIENT ID")
    });
}

#[test]
fn redis_benchmark_finds_no_failure_from_its_first_connection_on() {
    each_depth("load", &cache, |host, _, address| {
        let args = ["-h", address, "-n", "1000", "-c", "8", "-t", "ping,set,get", "--csv"];
        let said = quiet(host.run("redis-benchmark", &args)?)?;
        ensure!(said.lines().count() == 5, "not four tests under their heading: {said}");
        Ok(())
    });
}
