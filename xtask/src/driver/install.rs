//! System packages: the software Vulkan driver, and what continuous integration needs besides.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};

use super::here;
use crate::cmd::Cmd;

/// The driver as Debian and Ubuntu name it.
pub const DRIVER: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];

/// A program that stages of `cargo xtask test --all` use besides.
struct Tool {
    package: &'static str,
    /// Shows that the program is there: not everyone has it from the distribution.
    check: &'static str,
}

/// pip is for the Python side of burn's checks, node and npm for the second opinion on shaders.
const TOOLS: &[Tool] = &[
    Tool { package: "python3-pip", check: "pip3 --version" },
    Tool { package: "nodejs", check: "node --version" },
    Tool { package: "npm", check: "npm --version" },
];

/// A family of Linux distributions: names in `ID` or `ID_LIKE` of os-release, and how it installs the driver.
struct System {
    ids: &'static [&'static str],
    install: &'static [&'static str],
}

const SYSTEMS: &[System] = &[
    System {
        ids: &["debian", "ubuntu"],
        // The packages are appended, since only here other packages are installed too.
        install: &["apt-get update", "apt-get install --yes --no-install-recommends"],
    },
    System {
        ids: &["fedora", "rhel", "centos"],
        install: &["dnf install -y mesa-vulkan-drivers vulkan-loader"],
    },
    System {
        ids: &["arch"],
        install: &["pacman -S --needed --noconfirm vulkan-swrast vulkan-icd-loader"],
    },
    System { ids: &["alpine"], install: &["apk add mesa-vulkan-swrast vulkan-loader"] },
    System {
        ids: &["suse", "opensuse"],
        install: &["zypper --non-interactive install libvulkan_lvp libvulkan1"],
    },
];

/// Who we are, as far as package managers care.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Names of the distribution and of those it descends from.
    ids: Vec<String>,
    root: bool,
}

impl Machine {
    pub fn here() -> Self {
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let uid = Cmd::new("id -u").read(Path::new("."));
        Self { ids: ids(&os_release), root: uid.is_ok_and(|uid| uid.trim() == "0") }
    }

    fn system(&self) -> Option<&'static System> {
        let known = |id: &String| SYSTEMS.iter().find(|s| s.ids.contains(&id.as_str()));
        self.ids.iter().find_map(known)
    }

    fn debian(&self) -> bool {
        self.system().is_some_and(|s| s.ids.contains(&"debian"))
    }

    /// Root on Debian itself.
    pub fn is_debian_root(&self) -> bool {
        self.root && self.ids.first().is_some_and(|id| id == "debian")
    }

    /// Commands that install the packages, on Debian and its kin, or the driver, elsewhere.
    pub fn commands(&self, packages: &[&str]) -> Vec<Cmd> {
        let Some(system) = self.system() else {
            return Vec::new();
        };
        let sudo = if self.root { "" } else { "sudo " };
        let command = |line: &&str| {
            if !self.debian() {
                return Cmd::new(&format!("{sudo}{line}"));
            }
            // sudo drops our environment, so the variable is part of the command.
            let cmd = Cmd::new(&format!("{sudo}env DEBIAN_FRONTEND=noninteractive {line}"));
            let install = line.contains(" install ");
            let packages = packages.iter().filter(|_| install);
            cmd.args(packages.map(|p| p.to_string()))
        };
        system.install.iter().map(command).collect()
    }

    /// Without being asked, only root on a Debian system gets packages: there, by custom, a container.
    fn may_install(&self, asked: bool) -> bool {
        self.system().is_some() && (asked || (self.root && self.debian()))
    }

    fn advice(&self) -> String {
        let commands = self.commands(&DRIVER);
        if commands.is_empty() {
            return "install your system's Vulkan loader and Mesa's software driver (lavapipe)"
                .into();
        }
        let lines: Vec<_> = commands.iter().map(|c| format!("    {c}")).collect();
        format!("`cargo xtask driver install` would run:\n{}", lines.join("\n"))
    }
}

/// How to get a driver on this machine.
pub fn advice() -> String {
    Machine::here().advice()
}

/// Makes sure that there is a driver: installs one where that is allowed, and else says how to.
/// Without a driver the caller goes on with the CPU reference.
pub fn driver(asked: bool) -> Result<()> {
    if here().usable() {
        return Ok(());
    }
    println!("No usable Vulkan driver was found.");
    let machine = Machine::here();
    if !machine.may_install(asked) {
        println!("{}", machine.advice());
        if asked {
            bail!("no package manager that we know was found");
        }
        println!("`cargo xtask {} --install-driver` does it in one go.", running());
        return Ok(());
    }
    let installed = run_all(&machine.commands(&DRIVER));
    match installed {
        Err(error) if !asked => println!("notice: the driver was not installed: {error:#}"),
        other => other?,
    }
    if !here().usable() {
        println!("notice: there is still no usable driver; see `cargo xtask driver`");
    }
    Ok(())
}

/// The command that runs: each that calls [`driver`] has the option.
fn running() -> String {
    std::env::args().nth(1).unwrap_or_else(|| "test".into())
}

/// Installs the driver and the tools that are missing, as root on Debian and its kin; says what it leaves out.
pub fn system_packages(asked: bool) -> Result<()> {
    let machine = Machine::here();
    let here = Path::new(".");
    let works = |tool: &&Tool| installed(tool.package) || Cmd::new(tool.check).read(here).is_ok();
    let tools = TOOLS.iter().filter(|tool| !works(tool));
    let tools: Vec<_> = tools.map(|tool| tool.package).collect();
    if !machine.debian() || !machine.root {
        if !tools.is_empty() {
            println!(
                "Missing: {}. They are installed only as root on Debian or Ubuntu; steps that need them are \
                 skipped.",
                tools.join(", ")
            );
        }
        return driver(asked);
    }
    let drivers = DRIVER.into_iter().filter(|package| !installed(package));
    let drivers: Vec<_> = drivers.collect();
    if drivers.is_empty() && tools.is_empty() {
        println!("All packages are installed.");
    }
    // One after the other: a tool that cannot be had must not cost the driver.
    for missing in [drivers, tools] {
        if missing.is_empty() {
            continue;
        }
        println!("Missing packages: {}", missing.join(", "));
        // Without network the stages that need nothing new still run, and the others say what they miss.
        if let Err(error) = run_all(&machine.commands(&missing)) {
            println!("notice: not every package was installed: {error:#}");
        }
    }
    Ok(())
}

fn run_all(commands: &[Cmd]) -> Result<()> {
    commands.iter().try_for_each(|cmd| cmd.run(Path::new(".")))
}

fn installed(package: &str) -> bool {
    // A removed package whose settings are kept is known to dpkg too, so the status is read.
    let status = Cmd::new(&format!("dpkg -s {package}")).read(Path::new("."));
    status.is_ok_and(|text| text.contains("Status: install ok installed"))
}

/// Values of `ID` and `ID_LIKE`, the distribution's own name first.
fn ids(os_release: &str) -> Vec<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|l| l.strip_prefix(key));
        line.unwrap_or_default().trim_matches('"').to_string()
    };
    let own = value("ID=");
    let like = value("ID_LIKE=");
    let words = own.split_whitespace().chain(like.split_whitespace());
    words.map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(os_release: &str, root: bool) -> Machine {
        Machine { ids: ids(os_release), root }
    }

    fn lines(machine: &Machine) -> Vec<String> {
        let commands = machine.commands(&DRIVER);
        commands.iter().map(Cmd::to_string).collect()
    }

    #[test]
    fn os_release_names() {
        let text =
            "NAME=\"Linux Mint\"\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"22\"\n";
        assert_eq!(ids(text), ["linuxmint", "ubuntu", "debian"]);
        assert!(ids("").is_empty());
    }

    #[test]
    fn root_on_debian_installs_unasked() {
        let debian = machine("ID=debian\n", true);
        assert!(debian.may_install(false));
        assert_eq!(
            lines(&debian),
            [
                "env DEBIAN_FRONTEND=noninteractive apt-get update",
                "env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
                 mesa-vulkan-drivers libvulkan1",
            ]
        );
    }

    #[test]
    fn others_are_asked_and_use_sudo() {
        let ubuntu = machine("ID=ubuntu\nID_LIKE=debian\n", false);
        assert!(!ubuntu.may_install(false) && ubuntu.may_install(true));
        assert!(lines(&ubuntu).iter().all(|l| l.starts_with("sudo env DEBIAN")));
        let fedora = machine("ID=fedora\n", true);
        assert!(!fedora.may_install(false) && fedora.may_install(true));
        assert_eq!(lines(&fedora), ["dnf install -y mesa-vulkan-drivers vulkan-loader"]);
        let tumbleweed = "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n";
        assert!(lines(&machine(tumbleweed, false))[0].starts_with("sudo zypper"));
    }

    #[test]
    fn unknown_systems_get_words_only() {
        let unknown = machine("ID=plan9\n", true);
        assert!(!unknown.may_install(true));
        assert!(unknown.advice().contains("lavapipe"));
        assert!(machine("ID=arch\n", true).advice().contains("vulkan-swrast"));
    }
}
