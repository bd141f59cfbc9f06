"use strict";
(() => {
{% include "charts.js" %}
  const hidden = new Set(); // "chart:attack" that the reader switched off

  const alpha = (colour, part) => colour + Math.round(255 * part).toString(16).padStart(2, "0");
  const hundred = (shares) => shares.map((share) => (share === null ? null : 100 * share));
  const visible = (chart, attack) => !hidden.has(`${chart}:${attack}`);
  const last = (list) => list[list.length - 1];

  function logAxis(title) {
    const low = Math.round(Math.log10(data.floor));
    const values = Array.from({length: 1 - low}, (_, i) => 10 ** (low + i));
    return {
      title, type: "log", range: [low, 0.02], tickvals: values, ticktext: values.map(percent),
      minor: {ticks: ""},
    };
  }

  function roc() {
    const ink = INKS[theme()];
    const guessing = {
      x: [data.floor, 1], y: [data.floor, 1], mode: "lines", hoverinfo: "skip", line: {color: ink.line, width: 1.5},
    };
    const curves = data.roc.map((curve) => {
      const {name, colour, dash} = look(curve.attack);
      return {
        name, x: curve.fpr, y: curve.tpr, mode: "lines",
        line: {color: colour, width: 2, dash, shape: "hv"}, visible: visible("roc", curve.attack),
        customdata: curve.fpr.map((fpr, i) => [percent(fpr), percent(curve.tpr[i])]),
        hovertemplate: "%{fullData.name}<br>TPR <b>%{customdata[1]}</b> at FPR %{customdata[0]}<extra></extra>",
      };
    });
    draw("chart-roc", [guessing, ...curves], layout(logAxis("False-positive rate"), logAxis("True-positive rate")));
  }

  function clients() {
    const attack = document.getElementById("client-attack");
    const fpr = document.getElementById("client-fpr");
    if (!attack) return;
    const ink = INKS[theme()];
    const {colour} = look(attack.value);
    const {targets, names, values, pooled} = data.clients;
    const bars = values[attack.value][fpr.value];
    const whisker = (i) => bars.map((bar) => (bar[i] === null || bar[0] === null ? 0 : 100 * Math.abs(bar[i] - bar[0])));
    const trace = {
      type: "bar", x: targets.map(String), y: hundred(bars.map((bar) => bar[0])),
      marker: {color: alpha(colour, 0.3), line: {color: colour, width: 1.2}},
      error_y: {type: "data", array: whisker(2), arrayminus: whisker(1), color: ink.ink, thickness: 1, width: 3},
      customdata: bars.map((bar) => [...bar.slice(0, 3).map(percent), bar[3] ?? "unknown"]),
      hovertemplate: "Client %{x}<br>TPR <b>%{customdata[0]}</b> (%{customdata[1]} to %{customdata[2]})" +
        "<br>false positives: %{customdata[3]}<extra></extra>",
    };
    const level = pooled[attack.value][fpr.value];
    const place = {y: 100 * level, yref: "y", xref: "paper"};
    draw("chart-clients", [trace], layout(
      {title: "Client", type: "category", showgrid: false},
      {title: `TPR at ${names[fpr.value]} FPR`, ticksuffix: "\u00a0%", rangemode: "tozero"},
      level === null ? {bargap: 0.5} : {
        bargap: 0.5, margin: {l: 10, r: 62, t: 12, b: 10},
        shapes: [{type: "line", ...place, x0: 0, x1: 1, y0: 100 * level, y1: 100 * level,
          line: {color: ink.muted, width: 1.2, dash: "4px,3px"}}],
        annotations: [{...place, x: 1, text: `pooled<br>${percent(level)}`, showarrow: false, xanchor: "left", xshift: 6,
          align: "left", font: {size: 12, color: ink.ink}}],
      },
    ));
  }

  function ticks(end) {
    const sizes = [1, 2, 5].flatMap((digit) => [0, 1, 2, 3, 4, 5].map((power) => digit * 10 ** power));
    const size = sizes.sort((a, b) => a - b).find((one) => end / one <= 8) ?? end;
    return Array.from({length: Math.floor(end / size) + 1}, (_, i) => i * size);
  }

  function rounds() {
    if (!data.rounds.length) return;
    const recorded = [...new Set(data.rounds.flatMap((curve) => curve.round))].sort((a, b) => a - b);
    const step = 0.02 * Math.max(last(recorded), 1);
    const traces = data.rounds.flatMap((curve, i) => {
      const {name, colour, dash, symbol} = look(curve.attack);
      const single = curve.kind === "single";
      const spread = (list) => (single ? list : recorded.map(() => last(list)));
      const [y, low, high] = [curve.tpr, curve.low, curve.high].map((list) => hundred(spread(list)));
      const marker = {symbol, size: 6, color: colour};
      const visibility = visible("rounds", curve.attack);
      return [
        {
          name, x: single ? curve.round : recorded, y, mode: single ? "lines+markers" : "lines", marker,
          visible: visibility, line: {color: colour, width: single ? 1.6 : 2.4, dash},
          customdata: y.map((_, j) => [low[j], high[j]]),
          hovertemplate: "<b>%{y:.3~g} %</b> (%{customdata[0]:.3~g} to %{customdata[1]:.3~g} %)",
        },
        {
          x: [last(recorded) + (2 + i) * step], y: [last(y)], mode: "markers", marker, visible: visibility,
          hoverinfo: "skip", error_y: {
            type: "data", array: [last(high) - last(y)], arrayminus: [last(y) - last(low)], color: colour,
            thickness: 1.6, width: 0,
          },
        },
      ];
    });
    draw("chart-rounds", traces, layout(
      {title: "Round", rangemode: "tozero", tickvals: ticks(last(recorded)), unifiedhovertitle: {text: "Round %{x}"}},
      {title: `TPR at ${percent(data.rounds[0].fpr)} FPR`, ticksuffix: "\u00a0%", rangemode: "tozero"},
      {hovermode: "x unified"},
    ));
  }

  function hijack() {
    if (!data.hijack) return;
    const ink = INKS[theme()];
    const {series, attacks, lined} = data.hijack;
    const lines = series.map(({key, look: own, round, value, low, high}) => {
      const {name, colour, dash} = coloured(own);
      return {
        name, x: round, y: hundred(value), mode: round.length > 1 ? "lines" : "markers", marker: {color: colour},
        line: {color: colour, width: 2, dash}, visible: visible("hijack", key),
        customdata: round.map((_, i) => (low.length ? ` (${percent(low[i])} to ${percent(high[i])})` : "")),
        hovertemplate: "<b>%{y:.3~g} %</b>%{customdata}",
      };
    });
    const marks = {
      name: "attackers", x: attacks.map(([round]) => round), y: attacks.map(() => 0), mode: "markers",
      marker: {symbol: attacks.length > lined ? "line-ns-open" : "triangle-up", size: 8, color: ink.muted},
      cliponaxis: false,
      customdata: attacks.map(([, clients]) => clients), hovertemplate: "<b>%{customdata}</b>",
    };
    const shapes = (attacks.length <= lined ? attacks : []).map(([round]) => ({
      type: "line", x0: round, x1: round, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: {color: ink.line, width: 1, dash: "2px,3px"},
    }));
    draw("chart-hijack", attacks.length ? [...lines, marks] : lines, layout(
      {title: "Round", rangemode: "tozero", unifiedhovertitle: {text: "Round %{x}"}},
      {title: "Accuracy on held-out data", ticksuffix: "\u00a0%", range: [0, 102]}, {hovermode: "x unified", shapes},
    ));
  }

  function decided() {
    if (!data.decided) return;
    const ink = INKS[theme()];
    const {round, value, last: end, best, chance} = data.decided;
    const {colour} = coloured(data.decided);
    const hovertemplate = "<b>%{y:.3~g} %</b>";
    draw("chart-decided", [
      {
        name: "right decisions", x: round, y: hundred(value), mode: round.length > 1 ? "lines" : "markers",
        line: {color: colour, width: 1.6}, marker: {color: colour}, hovertemplate,
      },
      {
        name: "mean over the last rounds", x: end.rounds, y: hundred([end.value, end.value]), mode: "lines",
        line: {color: colour, width: 4}, hoverinfo: "skip",
      },
      {
        name: "best round", x: [best.round], y: hundred([best.value]), mode: "markers",
        marker: {symbol: "diamond", size: 10, color: colour}, hovertemplate: "<b>%{y:.3~g} %</b>, chosen with the truth",
        cliponaxis: false,
      },
    ], layout(
      {title: "Round", rangemode: "tozero", unifiedhovertitle: {text: "Round %{x}"}},
      {title: "Right decisions", ticksuffix: "\u00a0%", range: [0, 102]},
      {
        hovermode: "x unified",
        shapes: [{
          type: "line", xref: "paper", x0: 0, x1: 1, y0: 100 * chance, y1: 100 * chance, layer: "below",
          line: {color: ink.muted, width: 1.2, dash: "4px,3px"},
        }],
        annotations: [{
          x: best.round, y: 100 * best.value, text: "chosen with the truth", showarrow: false, yanchor: "bottom",
          yshift: 8, font: {size: 12, color: ink.ink},
        }],
      },
    ));
  }

  function accuracy() {
    const ink = INKS[theme()];
    const {round, accuracy: value, loss, train} = data.history;
    const traces = [{
      x: round, y: hundred(value), mode: round.length > 1 ? "lines" : "markers", line: {color: ink.ink, width: 2},
      marker: {color: ink.ink}, customdata: loss.map((one) => (one === null ? "unknown" : +one.toPrecision(4))),
      hovertemplate: "Round %{x}<br>held out <b>%{y:.3~g} %</b>, loss %{customdata}<extra></extra>",
    }];
    if (train !== null) {
      traces.push({
        x: [last(round)], y: [100 * train], mode: "markers", marker: {symbol: "diamond", size: 9, color: ink.muted},
        hovertemplate: "training data, final model <b>%{y:.3~g} %</b><extra></extra>", cliponaxis: false,
      });
    }
    draw("chart-accuracy", traces, layout(
      {title: "Round", rangemode: "tozero"}, {title: "Accuracy", ticksuffix: "\u00a0%", rangemode: "tozero"},
    ));
  }

  const all = () => [roc, clients, rounds, hijack, decided, accuracy].forEach((one) => one());

  function chooseTable() {
    const chosen = (name) => document.querySelector(`input[name=${name}]:checked`)?.value;
    const [where, against] = [chosen("where"), chosen("against")];
    document.querySelectorAll("[data-where]").forEach((one) => {
      one.hidden = (where ?? one.dataset.where) !== one.dataset.where ||
        (against ?? one.dataset.against) !== one.dataset.against;
    });
  }

  function toggle(button) {
    const key = `${button.dataset.chart}:${button.dataset.attack}`;
    const shown = hidden.delete(key);
    if (!shown) hidden.add(key);
    button.setAttribute("aria-pressed", String(shown));
    ({roc, rounds, hijack})[button.dataset.chart]();
  }

  document.querySelectorAll("input[name=where], input[name=against]").forEach((one) => one.addEventListener("change", chooseTable));
  document.querySelectorAll(".legend button").forEach((one) => one.addEventListener("click", () => toggle(one)));
  document.querySelectorAll("#clients select").forEach((one) => one.addEventListener("change", clients));
  whenPrinting(all);
  chooseTable();
  all();
})();
