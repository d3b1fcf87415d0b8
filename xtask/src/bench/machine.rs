//! What the report says about the machine and the source.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::report::Host;
use crate::cmd::Cmd;

/// Variables with these beginnings change which device runs what, or how fast: ours, and those of Mesa's
/// software driver.
const VARIABLES: [&str; 2] = ["ATTN_", "LP_"];

impl Host {
    /// Asks the system. What it does not tell is left out.
    pub fn here(root: &Path) -> Self {
        let read = |line: &str| Cmd::new(line).read(root).ok().map(|text| text.trim().to_string());
        Host {
            commit: commit(root),
            rustc: read("rustc --version"),
            debug_assertions: cfg!(debug_assertions),
            os: os(),
            arch: std::env::consts::ARCH.into(),
            cpu: cpu(&read),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            environment: environment(),
        }
    }
}

/// Set variables that change what runs.
pub fn environment() -> BTreeMap<String, String> {
    let ours = |name: &str| VARIABLES.iter().any(|start| name.starts_with(start));
    // Values that are not Unicode cannot be meant for us.
    let all = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    all.filter(|(name, _)| ours(name)).collect()
}

fn commit(root: &Path) -> Option<String> {
    // The folder may belong to someone else, as in a container.
    let trust = format!("safe.directory={}", root.display());
    let git = |words: &str| {
        let words = words.split(' ').map(String::from);
        Cmd::new("git -c").arg(trust.clone()).args(words).read(root).ok()
    };
    let hash = git("rev-parse HEAD")?.trim().to_string();
    let changes = git("status --porcelain")?;
    Some(if changes.trim().is_empty() { hash } else { format!("{hash}+changes") })
}

fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    match pretty {
        Some(name) => format!("{} ({})", std::env::consts::OS, name.trim_matches('"')),
        None => std::env::consts::OS.into(),
    }
}

fn cpu(read: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    match std::env::consts::OS {
        "macos" => read("sysctl -n machdep.cpu.brand_string"),
        "windows" => std::env::var("PROCESSOR_IDENTIFIER").ok(),
        _ => {
            let info = fs::read_to_string("/proc/cpuinfo").ok()?;
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split(':').nth(1)?.trim().to_string())
        }
    }
}

/// The present moment in UTC.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    date(seconds)
}

/// Seconds since 1970 as `2026-01-31T12:00:00Z`.
fn date(seconds: u64) -> String {
    let (mut day, time) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_767_225_599), "2025-12-31T23:59:59Z");
        assert_eq!(date(1_772_366_461), "2026-03-01T12:01:01Z");
    }

    #[test]
    fn this_machine() {
        let host = Host::here(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(host.cores >= 1 && host.rustc.is_some_and(|rustc| rustc.starts_with("rustc ")));
    }
}
