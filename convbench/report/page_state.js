// What the reader has chosen. It stands in the address (#sort=time&backend=fft), so that a view can be shared; what is
// as it was at first does not.
class State {
  #listeners = [];
  #params = State.#read();

  constructor() {
    addEventListener("hashchange", () => {
      // A link to a section is no choice: it scrolls, and what was chosen is written back.
      if (location.hash.length > 1 && !location.hash.includes("=")) return this.#write();
      this.#params = State.#read();
      this.#tell(() => true);
    });
  }

  static #read() {
    const text = location.hash.slice(1);
    return new URLSearchParams(text.includes("=") ? text : "");
  }

  get(key, otherwise = "") {
    return this.#params.get(key) ?? otherwise;
  }

  // The names under a key, or all but those under the opposite key: whichever is shorter to write.
  chosen(key, names) {
    if (this.#params.has(key)) return new Set(this.#params.getAll(key).filter((name) => names.includes(name)));
    const without = new Set(this.#params.getAll(`no-${key}`));
    return new Set(names.filter((name) => !without.has(name)));
  }

  // Set some keys; an empty value takes its key out.
  set(changes) {
    for (const [key, value] of Object.entries(changes)) {
      if (value === "" || value === undefined) this.#params.delete(key);
      else this.#params.set(key, value);
    }
    this.#changed(Object.keys(changes));
  }

  choose(key, names, chosen) {
    const [inside, outside] = [names.filter((name) => chosen.has(name)), names.filter((name) => !chosen.has(name))];
    this.#params.delete(key);
    this.#params.delete(`no-${key}`);
    if (!inside.length) this.#params.append(key, "");
    else if (outside.length > inside.length) inside.forEach((name) => this.#params.append(key, name));
    else outside.forEach((name) => this.#params.append(`no-${key}`, name));
    this.#changed([key]);
  }

  // Call now, and whenever one of these keys may have changed.
  on(keys, act) {
    this.#listeners.push({ keys, act });
    act();
  }

  #changed(keys) {
    this.#write();
    this.#tell((listener) => listener.keys.some((key) => keys.some((other) => other.startsWith(key))));
  }

  #tell(concerns) {
    this.#listeners.filter(concerns).forEach(({ act }) => act());
  }

  #write() {
    const text = this.#params.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }
}
