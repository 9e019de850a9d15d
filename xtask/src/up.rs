//! `cargo xtask up`: from a checkout to an answer.

use std::{
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    ask, chart,
    cluster::{Cluster, DEFAULT_NAME, Spec, Wanted},
    components, deps,
    forward::Forward,
    images::{self, ProjectImages},
    paths::{Cache, Checkout},
    programs,
    sample::{self, Sample},
    target::Target,
    ui::{Step, Steps, say},
    versions::{CLUSTER, HELM, KUBERNETES},
    weights, wheels,
};

/// What to start.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Nodes of the cluster, 1 to 9.
    #[arg(long, default_value_t = 1)]
    pub(crate) nodes: u8,
    /// Port of the ingress on 127.0.0.1.
    #[arg(long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// Name of the cluster; several live side by side.
    #[arg(long, default_value = DEFAULT_NAME)]
    pub(crate) name: String,
    /// Installs on the cluster of this context of your kubeconfig instead of starting one.
    #[arg(long, conflicts_with_all = ["nodes", "port", "name", "bare", "small_disks"])]
    pub(crate) context: Option<String>,
    /// With --context: where the images are pushed to for the nodes to pull, for example
    /// `registry.example.org/me`.
    #[arg(long, requires = "context")]
    pub(crate) image_registry: Option<String>,
    /// Further values for the chart, as `helm --set` takes them.
    #[arg(long)]
    pub(crate) set: Vec<String>,
    /// Only Kubernetes, without the chart and the model.
    #[arg(long)]
    pub(crate) bare: bool,
    /// Takes our programs as they were built last.
    #[arg(long)]
    pub(crate) no_build: bool,
    /// Everything but the sample model.
    #[arg(long)]
    pub(crate) no_sample: bool,
    /// Gives nodes and volumes disks of so many megabytes in memory, for tests that fill them.
    #[arg(long, value_name = "MEGABYTES")]
    pub(crate) small_disks: Option<u32>,
}

/// What `up` has to work with.
pub(crate) struct Up<'a> {
    pub(crate) checkout: &'a Checkout,
    pub(crate) cache: &'a Cache,
    pub(crate) args: &'a UpArgs,
}

impl Up<'_> {
    /// Does it all and says what to do next.
    pub(crate) fn run(&self) -> Result<()> {
        if let Some(context) = &self.args.context {
            return self.on_context(context);
        }
        deps::require_root()?;
        let started = Instant::now();
        let cluster = Cluster::open(self.checkout, self.cache, &self.args.name)?;
        let _lock = cluster.lock()?;
        let mut steps = Steps::new(match (self.args.bare, self.args.no_sample) {
            (true, _) => 4,
            (_, true) => 7,
            _ => 14,
        });
        self.prepare(&mut steps)?;
        let images = if self.args.bare {
            None
        } else {
            Some(self.images(&mut steps)?)
        };
        let spec = self.start(&cluster, &mut steps)?;
        if let Some(images) = images {
            let target = Target::local(self.cache, &cluster);
            let step = steps.begin("images on the nodes");
            let put = images::load(&cluster, &images.all())?;
            step.done(&format!("{put} put"));
            self.install(&target, &images, &mut steps, true)?;
            if !self.args.no_sample {
                let address = format!("127.0.0.1:{}", spec.registry_port);
                self.sample(&target, &address, spec.ingress_port, &mut steps)?;
            }
        }
        say(format_args!(
            "\nUp after {:.0} s.",
            started.elapsed().as_secs_f64()
        ));
        self.next_steps(&cluster, &spec);
        Ok(())
    }

    /// Debian packages and the programs of the cluster.
    fn prepare(&self, steps: &mut Steps) -> Result<()> {
        let log = self.cache.join("log/components.log");
        let step = steps.begin("what the machine must have");
        let needs_go =
            !components::missing(self.cache, CLUSTER).is_empty() || !images::has_pause(self.cache);
        deps::ensure(self.cache, needs_go, &step)?;
        step.done("");
        let step = steps.begin("Kubernetes and its companions");
        std::thread::scope(|scope| {
            if needs_go && !self.args.bare && !self.args.no_build {
                // Our programs are compiled meanwhile: neither build keeps all cores busy all the
                // time. If it fails, the step that needs them says so.
                scope.spawn(|| {
                    let log = self.cache.join("log/programs.log");
                    programs::build(self.checkout, &log, Some(&Step::hidden()))
                });
            }
            components::ensure(self.checkout, self.cache, CLUSTER, &log, &step)?;
            step.amount("Envoy");
            wheels::ensure_envoy(self.cache, &log)
        })?;
        step.done(&format!("Kubernetes {}", KUBERNETES.version));
        Ok(())
    }

    /// Our programs and their images.
    fn images(&self, steps: &mut Steps) -> Result<ProjectImages> {
        let log = self.cache.join("log/programs.log");
        let step = steps.begin("our programs");
        let build = (!self.args.no_build).then_some(&step);
        let programs = programs::build(self.checkout, &log, build)?;
        step.done("");
        let log = self.cache.join("log/images.log");
        let step = steps.begin("images");
        let images = images::project(self.checkout, self.cache, &programs, &log, &|name| {
            step.amount(name);
        })?;
        let fresh = images.all().iter().filter(|i| i.fresh).count();
        step.done(&format!("{fresh} of 3 built"));
        Ok(images)
    }

    fn start(&self, cluster: &Cluster, steps: &mut Steps) -> Result<Spec> {
        let log = self.cache.join("log/images.log");
        let step = steps.begin("cluster");
        let pause = images::ensure_pause(self.checkout, self.cache, &log)?;
        let spec = cluster.start(
            &Wanted {
                nodes: self.args.nodes,
                ingress_port: self.args.port,
                disk_mb: self.args.small_disks,
            },
            &step,
        )?;
        images::load(cluster, &[pause])?;
        step.done(&match spec.nodes {
            1 => "1 node is ready".to_owned(),
            nodes => format!("{nodes} nodes are ready"),
        });
        if self.args.bare {
            let step = steps.begin("base image on the nodes");
            images::load(cluster, &[images::debian(self.cache, &log)?])?;
            step.done("docker.io/library/debian:bookworm-slim");
        }
        Ok(spec)
    }

    fn install(
        &self,
        target: &Target,
        images: &ProjectImages,
        steps: &mut Steps,
        local: bool,
    ) -> Result<()> {
        let step = steps.begin("the chart");
        let values = chart::values(images, local);
        step.note(&format!("values: {}", chart::values_file(target).display()));
        let extra: Vec<String> = self
            .args
            .set
            .iter()
            .flat_map(|s| ["--set".to_owned(), s.clone()])
            .collect();
        chart::install(self.checkout, self.cache, target, Some(&values), &extra)?;
        step.done(&format!(
            "release {} in {}",
            chart::RELEASE,
            chart::NAMESPACE
        ));
        Ok(())
    }

    /// Pushes the sample model, waits for it and asks it.
    fn sample(
        &self,
        target: &Target,
        registry: &str,
        ingress_port: u16,
        steps: &mut Steps,
    ) -> Result<()> {
        let log = self.cache.join("log/sample.log");
        let step = steps.begin("weights of SmolLM2-135M-Instruct");
        let weights = weights::ensure_smollm2(self.cache, &log, &step)?;
        let repository = sample::repository(self.cache, &weights, &log)?;
        step.done("");
        let step = steps.begin("git push to the registry");
        let access = sample::Access {
            token: chart::registry_token(target)?,
            ca: chart::registry_ca(target)?,
        };
        let commit = sample::push(&repository, sample::NAME, registry, &access, &log)?;
        step.done(&format!(
            "{}://{registry}/git/default/{}.git {}",
            chart::registry().0,
            sample::NAME,
            &commit[..12]
        ));
        let step = steps.begin("the model is ready");
        let took = Sample::Model.apply(self.checkout, target, &step)?;
        step.done(&format!("{:.1} s after kubectl apply", took.as_secs_f64()));
        let answer = Self::asked(ingress_port, sample::NAME, sample::QUESTION, steps)?;
        if answer.commit != commit {
            bail!(
                "the answer came from commit {} and not from {commit}",
                answer.commit
            );
        }
        let step = steps.begin("git push of an adapter");
        let repository = sample::adapter_repository(self.cache, self.checkout, &log)?;
        let commit = sample::push(&repository, sample::ADAPTER, registry, &access, &log)?;
        step.done(&format!(
            "{}://{registry}/git/default/{}.git {}",
            chart::registry().0,
            sample::ADAPTER,
            &commit[..12]
        ));
        let step = steps.begin("the adapter is on every worker");
        let took = Sample::Adapter.apply(self.checkout, target, &step)?;
        step.done(&format!("{:.1} s after kubectl apply", took.as_secs_f64()));
        let question = sample::ADAPTER_QUESTION;
        Self::asked(ingress_port, sample::ADAPTER, question, steps).map(drop)
    }

    /// Asks a model, and shows and tells what it answers.
    fn asked(
        ingress_port: u16,
        model: &str,
        question: &str,
        steps: &mut Steps,
    ) -> Result<ask::Answer> {
        let step = steps.begin(&format!("asks {model}: {question}"));
        step.note("");
        let answer = Self::ask(ingress_port, model, question)?;
        say("");
        step.done(&format!(
            "{} pieces, the first after {:.2} s, all after {:.1} s, from commit {}",
            answer.pieces,
            answer.first.as_secs_f64(),
            answer.total.as_secs_f64(),
            answer.commit.get(..12).unwrap_or("unknown")
        ));
        Ok(answer)
    }

    /// Asks, again while the ingress does not know its way yet.
    fn ask(ingress_port: u16, model: &str, question: &str) -> Result<ask::Answer> {
        let started = Instant::now();
        loop {
            let mut shown = false;
            let answer = ask::ask(ingress_port, model, question, &mut |piece| {
                shown = true;
                print!("{piece}");
                let _ = std::io::stdout().flush();
            });
            if answer.is_ok() || shown || started.elapsed() > Duration::from_secs(30) {
                return answer.context("the model did not answer");
            }
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn next_steps(&self, cluster: &Cluster, spec: &Spec) {
        let programs = |c| components::folder(self.cache, c).display().to_string();
        say(format_args!(
            "\n  export KUBECONFIG={}",
            cluster.kubeconfig().display()
        ));
        say(format_args!(
            "  export PATH=$PATH:{}:{}",
            programs(&KUBERNETES),
            programs(&HELM)
        ));
        if self.args.bare {
            say("  kubectl get pods -A");
        } else {
            say("  kubectl get models");
            self.how_to_ask(&format!("http://127.0.0.1:{}", spec.ingress_port));
            say(format_args!(
                "\n  The registry takes pushes at {}://127.0.0.1:{}/git/NAMESPACE/NAME.git",
                chart::registry().0,
                spec.registry_port
            ));
            if chart::tls() {
                say(format_args!(
                    "  (export GIT_SSL_CAINFO={})",
                    cluster.dir().join("registry-ca.crt").display()
                ));
            }
            say(format_args!(
                "  (any user name; password: kubectl -n {} get secret {} -o \
                 go-template='{{{{index .data \"{}\" | base64decode}}}}')",
                chart::NAMESPACE,
                chart::KEYS.0,
                chart::KEYS.1
            ));
        }
        let name = match self.args.name.as_str() {
            DEFAULT_NAME => String::new(),
            name => format!(" --name {name}"),
        };
        say(format_args!(
            "\n  cargo xtask status    cargo xtask down{name}"
        ));
    }

    fn how_to_ask(&self, url: &str) {
        if self.args.no_sample {
            return;
        }
        say(format_args!(
            "  curl {url}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'",
            sample::NAME
        ));
        say("\n  from openai import OpenAI");
        say(format_args!(
            "  client = OpenAI(base_url=\"{url}/v1\", api_key=\"none\")"
        ));
        say(format_args!(
            "  print(client.chat.completions.create(model=\"{}\", messages=[{{\"role\": \"user\", \
             \"content\": \"Hello\"}}]).choices[0].message.content)",
            sample::NAME
        ));
    }

    /// The same on a cluster that the user has.
    fn on_context(&self, context: &str) -> Result<()> {
        let Some(registry) = &self.args.image_registry else {
            bail!(
                "the nodes of {context:?} pull images from a registry: name one that you may push \
                 to with --image-registry, for example registry.example.org/me"
            );
        };
        let mut steps = Steps::new(if self.args.no_sample { 5 } else { 12 });
        let step = steps.begin("what the machine must have");
        deps::ensure(self.cache, true, &step)?;
        step.done("");
        let step = steps.begin("kubectl and Helm");
        let log = self.cache.join("log/components.log");
        components::ensure(
            self.checkout,
            self.cache,
            &[&HELM, &KUBERNETES],
            &log,
            &step,
        )?;
        step.done("");
        let mut images = self.images(&mut steps)?;
        let log: PathBuf = self.cache.join("log/images.log");
        for image in [
            &mut images.control_plane,
            &mut images.registry,
            &mut images.worker,
        ] {
            image.reference = images::push_to(self.cache, image, registry, &log)?;
        }
        let target = Target::context(self.checkout, self.cache, context)?;
        self.install(&target, &images, &mut steps, false)?;
        if !self.args.no_sample {
            let service = |name: &str, port| Forward::open(&target, chart::NAMESPACE, name, port);
            let registry = service("hyprstream-registry", chart::registry().1)?;
            let gateway = service("hyprstream-gateway", 80)?;
            let address = format!("127.0.0.1:{}", registry.port);
            self.sample(&target, &address, gateway.port, &mut steps)?;
        }
        say(format_args!("\nhyprstream runs on {context}. Next:"));
        say(format_args!("  kubectl --context {context} get models"));
        say(format_args!(
            "  kubectl --context {context} -n {} port-forward service/hyprstream-gateway 8080:80",
            chart::NAMESPACE
        ));
        self.how_to_ask("http://127.0.0.1:8080");
        Ok(())
    }
}
