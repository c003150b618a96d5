//! Swap that is compressed memory (zram): it takes memory itself, as much as the kernel tells.

use super::*;

const CONTROL: &str = "/sys/class/zram-control/hot_add";

#[test]
fn a_sleeper_goes_to_compressed_memory_and_comes_back_under_another_server() {
    if !fs::exists(CONTROL).unwrap_or(false) {
        println!("skipped: this kernel has no zram, or its module is not loaded ({CONTROL})");
        return;
    }
    on_host(QUICK, |host| {
        host.perch(&["swap", "create", "128MiB", "--zram", "--data-dir", &data(host)])?.ok()?;
        let device = Device::of(host)?;
        let (address, sum) = holder(host)?;
        wait_paged_out(host, "quotes")?;
        wait_until("all of it in swap", SOON, || check_store(host, &device).map(Some))?;
        host.kill_server()?;
        host.start_server()?;
        ensure!(device == Device::of(host)?, "it was made anew");
        check_answer(&host.get(&address, 80, "/held")?, &sum)?;
        wait_paged_out(host, "quotes")?;
        host.stop_server()?;
        host.perch(&["down", "--data-dir", &data(host)])?.ok()?;
        ensure!(!device.is_there(), "a device is left after `perch down`");
        host.start_server()?;
        let device = Device::of(host)?;
        check_answer(&host.get(&address, 80, "/held")?, &sum)?;
        host.perch(&["swap", "remove", "--data-dir", &data(host)])?.ok()?;
        ensure!(!device.is_there(), "a device is left");
        check_answer(&host.get(&address, 80, "/held")?, &sum)
    });
}

/// A device of compressed memory, by its number.
#[derive(Debug, PartialEq, Eq)]
struct Device(String);

impl Device {
    /// The one that is this host's swap.
    fn of(host: &Host) -> Result<Self> {
        let text = fs::read_to_string(host.data_dir().join("swap.zram"))?;
        let number =
            text.split_whitespace().nth(1).with_context(|| format!("no number: {text}"))?;
        let found = Self(number.to_owned());
        ensure!(found.is_there() && is_on("/")?, "it is not on: {found:?}");
        Ok(found)
    }

    fn is_there(&self) -> bool {
        std::path::Path::new(&self.dir()).exists()
    }

    fn dir(&self) -> String {
        format!("/sys/block/zram{}", self.0)
    }

    /// Bytes of memory that it takes.
    fn takes(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("{}/mm_stat", self.dir()))?;
        let taken = text.split_whitespace().nth(2).with_context(|| format!("too short: {text}"))?;
        Ok(taken.parse()?)
    }
}

/// What it says of the store is what the kernel says, and it is said to people as well.
fn check_store(host: &Host, device: &Device) -> Result<()> {
    let paged = host.machines("quotes")?.pop().context("no Machine")?;
    let memory = &paged.value["perch_memory"];
    let bytes = |name: &str| memory[name].as_u64().with_context(|| format!("no {name}: {memory}"));
    ensure!(HELD_MB << 20 <= bytes("swapped_bytes")?, "it is not in swap: {memory}");
    let (told, takes) = (bytes("swap_store_bytes")?, device.takes()?);
    ensure!(told <= takes && takes / 2 < told, "{told} are told of {takes}");
    let shown = host.fly(&["machine", "status", &paged.id, "-a", "quotes"])?.ok()?;
    ensure!(shown.contains("(which takes ") && shown.contains(" MB of memory)"), "{shown}");
    let swap = host.perch(&["swap", "show", "--data-dir", &data(host)])?.ok()?;
    ensure!(swap.contains("of it in memory (zram)"), "{swap}");
    Ok(())
}
