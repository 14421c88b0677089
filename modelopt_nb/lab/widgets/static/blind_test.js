// The view of BlindTest.

function render({ model, el }) {
  const call = caller(model);
  const question = h("p", { className: "mnb-question" });
  const pictures = h("div", { className: "mnb-tiles" });
  const next = h("button", { type: "button", "data-do": "next", onclick: () => call("next") }, "Start");
  const score = h("table", { className: "mnb-history" });
  const answered = () => "answer" in model.get("round");
  const idle = () => model.get("status") === "idle";
  const answer = (i) => idle() && !answered() && call("answer", i);

  function showRound() {
    const round = model.get("round");
    if (!round.pngs) return;
    question.textContent = `Round ${round.number}: ${round.prompt}`;
    pictures.replaceChildren(
      ...round.pngs.map((png, i) => {
        const truth = answered() && round.place === i;
        const marks = [truth ? "mnb-truth" : "", answered() && round.answer === i ? "mnb-answer" : ""];
        const caption = `${i + 1}${truth ? `: ${round.variant}` : answered() ? ": dense" : ""}${answered() && round.answer === i ? " (your answer)" : ""}`;
        return h("button", { type: "button", className: `mnb-pick ${marks.join(" ")}`, disabled: answered(), "data-place": `${i}`, "aria-label": `Image ${caption}`, onclick: () => answer(i) }, image(png, ""), h("span", {}, caption));
      }),
    );
    if (answered()) next.focus();
  }
  function showStatus() {
    next.disabled = !idle() || (model.get("round").pngs && !answered());
    next.textContent = model.get("round").pngs ? "Next round" : "Start";
  }
  function showScore() {
    const rows = model.get("score");
    score.replaceChildren(
      h("caption", {}, "Right answers, interval of their share (95 % confidence for all variants, whenever you stop), verdict"),
      h("thead", {}, h("tr", {}, ...["variant", "right", "interval", "verdict"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((text) => h("td", {}, text))))),
    );
  }
  el.addEventListener("keydown", (e) => {
    const place = Number(e.key) - 1;
    if (place >= 0 && place < (model.get("round").pngs ?? []).length) answer(place);
    else if (e.key === "n" && !next.disabled) call("next");
    else return;
    e.preventDefault();
    e.stopPropagation();
  });
  el.tabIndex = 0;
  el.setAttribute("role", "group");
  el.setAttribute("aria-label", "Blind test: number keys answer, n deals the next round");
  keepKeys(el);
  el.classList.add("mnb", "mnb-blind-test");
  el.append(h("div", { className: "mnb-row" }, next, h("small", {}, "Keys: the number of an image answers, n deals the next round")), statusLine(model), question, pictures, h("div", { className: "mnb-scroll" }, score), h("p", { className: "mnb-about" }, model.get("about")));
  const unfollow = follow(model, {
    round: () => (showRound(), showStatus()), status: () => (showStatus(), idle() && answered() && next.focus()), score: showScore,
  });
  showRound();
  showStatus();
  showScore();
  return unfollow;
}

export default { render };
