//! HTTP/2 by clients that people have: curl, h2load and gRPC, each against a Machine that is stopped and one that is
//! suspended.

use anyhow::{Result, ensure};
use perch_testkit::{Host, grpc_image};

use crate::depths::each_depth;
use crate::real_clients::{hello, web_service};
use crate::real_http::base64;
use crate::stage::one_machine_of;

const LOADS: usize = 2000;

#[test]
fn curl_wakes_a_machine_by_http2() {
    each_depth("curl", &hello, |host, _, address| {
        let url = format!("http://[{address}]/");
        let line = "\n%{http_version} %{http_code} %header{perch-wake}";
        let said =
            host.run("curl", &["--http2-prior-knowledge", "-gsS", "-w", line, &url])?.ok()?;
        ensure!(said.contains("\n2 200 ") && said.contains(";dur="), "{said}");
        Ok(())
    });
}

#[test]
fn h2load_finds_no_failure_from_the_first_request_on() {
    each_depth("load", &hello, |host, _, address| {
        let (url, count) = (format!("http://[{address}]/"), LOADS.to_string());
        // Of an address it makes an authority that is none.
        let named = ":authority: load.flycast";
        let args = ["-n", &count, "-c", "4", "-m", "32", "-H", named, &url];
        let said = host.run("h2load", &args)?.ok()?;
        let whole = format!("{LOADS} done, {LOADS} succeeded, 0 failed, 0 errored, 0 timeout");
        ensure!(said.contains(&whole), "{said}");
        Ok(())
    });
}

#[test]
fn grpc_calls_of_all_kinds_wake_their_machine() {
    each_depth("grpc", &grpc, |host, _, address| {
        let script = host.dir().join("client.py");
        std::fs::write(&script, CLIENT)?;
        let target = format!("[{address}]:80");
        let said = host.run("/usr/bin/python3", &[&script.to_string_lossy(), &target])?.ok()?;
        ensure!(said.trim() == "all answered", "{said}");
        Ok(())
    });
}

fn grpc(host: &Host, app: &str, autostop: &str) -> Result<String> {
    let (service, script) = (web_service(8080, autostop), base64(host, SERVER)?);
    let sections = format!(
        "{service}  [http_service.http_options]\n    h2_backend = true\n[processes]\n  app = 'python3 \
         /srv/server.py'\n[[files]]\n  guest_path = '/srv/server.py'\n  raw_value = '{script}'\n"
    );
    one_machine_of(host, app, &grpc_image()?, &sections)
}

const SERVER: &str = "\
import grpc
from concurrent import futures
def one(message, context):
    context.set_trailing_metadata((('x-end', 'of one'),))
    return b'got ' + message
def many(message, context):
    for n in range(3):
        yield message + str(n).encode()
def collect(messages, context):
    return b','.join(messages)
def talk(messages, context):
    for message in messages:
        yield b'echo ' + message
def fail(message, context):
    context.abort(grpc.StatusCode.NOT_FOUND, 'no such thing')
class Handler(grpc.GenericRpcHandler):
    kinds = {
        '/t.T/One': grpc.unary_unary_rpc_method_handler(one),
        '/t.T/Many': grpc.unary_stream_rpc_method_handler(many),
        '/t.T/Collect': grpc.stream_unary_rpc_method_handler(collect),
        '/t.T/Talk': grpc.stream_stream_rpc_method_handler(talk),
        '/t.T/Fail': grpc.unary_unary_rpc_method_handler(fail),
    }
    def service(self, details):
        return self.kinds.get(details.method)
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Handler(),))
server.add_insecure_port('0.0.0.0:8080')
server.start()
server.wait_for_termination()
";

const CLIENT: &str = "\
import grpc, queue, sys
# Of an address it makes an authority that is none.
options = (('grpc.enable_http_proxy', 0), ('grpc.default_authority', 'grpc.flycast'))
channel = grpc.insecure_channel(sys.argv[1], options)
def check(got, wanted):
    if got != wanted:
        sys.exit(f'{got!r}, not {wanted!r}')
answer, call = channel.unary_unary('/t.T/One').with_call(b'this', timeout=30)
check(answer, b'got this')
check(dict(call.trailing_metadata()).get('x-end'), 'of one')
check(list(channel.unary_stream('/t.T/Many')(b'n', timeout=30)), [b'n0', b'n1', b'n2'])
check(channel.stream_unary('/t.T/Collect')(iter([b'a', b'b', b'c']), timeout=30), b'a,b,c')
said = queue.Queue()
talk = channel.stream_stream('/t.T/Talk')(iter(said.get, None), timeout=30)
for n in range(50):
    said.put(str(n).encode())
    check(next(talk), b'echo ' + str(n).encode())
said.put(None)
check(list(talk), [])
try:
    channel.unary_unary('/t.T/Fail')(b'', timeout=30)
except grpc.RpcError as error:
    check((error.code(), error.details()), (grpc.StatusCode.NOT_FOUND, 'no such thing'))
else:
    sys.exit('it did not fail')
large = b'x' * 3000000
check(channel.unary_unary('/t.T/One')(large, timeout=30), b'got ' + large)
print('all answered')
";
