"use strict";
// Age of the data, logs that follow, and curves. The rest of the page needs no script.

const $ = (selector, root = document) => root.querySelector(selector);

function showAge() {
  const age = $("#age");
  if (!age) return;
  const seconds = Math.max(0, Math.round(Date.now() / 1000 - Number(age.dataset.at) - skew));
  const text = seconds < 90 ? `${seconds} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
  age.textContent = `read ${text} ago`;
}
let skew = 0;

function serverAnswers(headers) {
  const age = $("#age");
  const at = headers && headers.get("x-read-at");
  const now = headers && headers.get("x-now");
  if (now) skew = Date.now() / 1000 - Number(now);
  if (age && at) age.dataset.at = at;
  $("#offline").hidden = true;
  showAge();
}

function serverSilent(status) {
  const banner = $("#offline");
  if (!banner.hidden) return;
  const time = new Date().toLocaleTimeString();
  const what = status ? `answers with error ${status}` : "has not answered";
  banner.textContent = `The server of this page ${what} since ${time}. What is shown is from before.`;
  banner.hidden = false;
}

document.addEventListener("htmx:after:request", (event) => {
  const response = event.detail?.ctx?.response;
  if (response?.raw?.ok) serverAnswers(response.raw.headers);
  else serverSilent(response?.raw?.status);
});
document.addEventListener("htmx:error", () => serverSilent());

async function read(address) {
  try {
    const response = await fetch(address, { credentials: "same-origin" });
    if (response.ok) {
      serverAnswers(response.headers);
      return response;
    }
    serverSilent(response.status);
    return null;
  } catch {
    serverSilent();
    return null;
  }
}

// Logs

const MOST_CHARACTERS = 2_000_000;

async function follow(log) {
  let next = log.dataset.next;
  let isOver = log.dataset.over === "true";
  log.scrollTop = log.scrollHeight;
  while (!isOver && log.isConnected) {
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 5000 : 1000));
    const response = await read(`${log.dataset.src}&after=${next}`);
    if (!response) continue;
    const part = await response.json();
    if (part.text) {
      const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(part.text);
      while (log.textContent.length > MOST_CHARACTERS && log.childNodes.length > 1) log.firstChild.remove();
      if (atEnd) log.scrollTop = log.scrollHeight;
    }
    next = part.next;
    isOver = part.is_over && !part.text;
    $("#log-state").textContent = isOver ? "the attempt has ended" : "following";
  }
}

// Curves

const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const HUES = [211, 24, 140, 330, 270, 50, 185, 0, 95, 240];

function stroke(number, isDark) {
  const hue = HUES[number % HUES.length];
  return `hsl(${hue} ${isDark ? "75% 70%" : "80% 36%"})`;
}

function draw(chart, found) {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--soft").trim();
  const line = style.getPropertyValue("--line").trim();
  const tables = found.curves.map((curve) => [curve.points.map((point) => point[0]), curve.points.map((point) => point[1])]);
  chart.replaceChildren();
  if (!tables.length) {
    chart.textContent = "No metrics yet.";
    return;
  }
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const series = found.curves.map((curve, number) => ({
    label: curve.label,
    stroke: stroke(number, isDark),
    dash: DASHES[Math.floor(number / HUES.length) % DASHES.length],
    width: 1.75,
    spanGaps: true,
    points: { show: curve.points.length < 30, size: 5 },
  }));
  const options = {
    width: chart.clientWidth,
    height: 340,
    scales: { x: { time: false } },
    series: [{ label: "step" }, ...series],
    axes: [{ ...axis, label: "step", labelSize: 22 }, { ...axis, label: found.metric, labelSize: 22, size: 64 }],
    legend: { live: true },
  };
  new uPlot(options, uPlot.join(tables), chart);
  const hidden = found.curves.reduce((sum, curve) => sum + curve.num_hidden, 0);
  if (hidden) {
    const note = document.createElement("p");
    note.className = "small soft";
    note.textContent = `Not drawn: ${hidden} values that are no numbers, or larger than 1e100.`;
    chart.append(note);
  }
}

async function plot(chart) {
  let seen = "";
  while (chart.isConnected) {
    const response = await read(chart.dataset.src);
    if (response) {
      const text = await response.text();
      const found = JSON.parse(text);
      if (text !== seen) draw(chart, found);
      seen = text;
      if (found.is_over) break;
    }
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 10000 : 3000));
  }
  chart.dataset.drawn = "true";
}

document.addEventListener("DOMContentLoaded", () => {
  const age = $("#age");
  if (age) skew = Date.now() / 1000 - Number(age.dataset.now);
  showAge();
  setInterval(showAge, 1000);
  document.querySelectorAll("pre.log[data-src]").forEach(follow);
  document.querySelectorAll(".chart[data-src]").forEach(plot);
  document.querySelectorAll("form[data-auto]").forEach((form) => {
    form.addEventListener("change", () => form.requestSubmit());
  });
});
